"""Packages of a build: fetched with the user's own tools, and only opened when they are what was tested."""

import hashlib
import sys

import pytest

from mingle.errors import ConfigError
from mingle.suites._build import packages
from mingle.suites._build.packages import Package

CONTENT = b"a small package"
RIGHT = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def tools(monkeypatch):
    """Stands in for pip and npm: leaves the file that they would, and notes the commands."""
    commands = []

    def run(command, folder):
        commands.append(command)
        folder.mkdir(parents=True)
        name = "scope-some-data-1.2.tgz" if "npm" in command[0] else "some_data-1.2-py3-none-any.whl"
        (folder / name).write_bytes(CONTENT)

    monkeypatch.setattr(packages, "run", run)
    return commands


@pytest.mark.parametrize(
    ("registry", "name", "command"),
    [
        ("pypi", "some-data", [sys.executable, "-m", "pip", "download"]),
        ("npm", "@scope/some-data", ["npm", "pack"]),
    ],
)
def test_what_is_missing_is_fetched_once(tools, tmp_path, registry, name, command):
    package, said = Package(registry, name, "1.2", RIGHT, 3), []
    with pytest.raises(ConfigError, match=r"1.2: not found in .*; run the build again"):
        package.found(tmp_path)
    for _ in range(2):
        packages.fetch([package], tmp_path, said.append)
    assert said == [f"download {name} 1.2 (3 MB)"]
    assert [one[: len(command)] for one in tools] == [command]
    assert package.found(tmp_path).read_bytes() == CONTENT
    assert packages.missing([package], tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_with_another_hash_is_never_opened(tools, tmp_path):
    package = Package("pypi", "some-data", "1.2", "0" * 64, 3)
    with pytest.raises(ConfigError, match=f"expected SHA-256 000.*found {RIGHT}; it is not the file"):
        packages.fetch([package], tmp_path, lambda what: None)
    assert packages.missing([package], tmp_path) == [package]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_was_there_before_is_checked_and_removed(tools, tmp_path):
    package = Package("pypi", "some-data", "1.2", RIGHT, 3)
    file = tmp_path / "some_data-1.2-py3-none-any.whl"
    file.write_bytes(b"something else")
    packages.fetch([package], tmp_path, lambda what: None)
    assert tools == []
    with pytest.raises(ConfigError, match=f"{file}: expected SHA-256 {RIGHT}, found .*removed unopened"):
        package.found(tmp_path)
    assert not file.exists()
    packages.fetch([package], tmp_path, lambda what: None)
    assert package.found(tmp_path).read_bytes() == CONTENT


def test_a_tool_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for registry, tool in (("npm", "npm"), ("pypi", "pip")):
        with pytest.raises(ConfigError, match=f"program '{tool}' not found: some-data 1.2 is fetched"):
            packages.check_tools([Package(registry, "some-data", "1.2", RIGHT, 3)])
    with pytest.raises(ConfigError, match="program 'apt-get' not found: wordnet-base is a Debian package"):
        packages.check_debian("wordnet-base")
