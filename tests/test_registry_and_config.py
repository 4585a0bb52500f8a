"""Plug-ins by name, options by key: what is wrong is said, with the nearest right thing."""

import re
from dataclasses import dataclass

import pytest
from pydantic import Field

from mingle import errors
from mingle.config import Options, read_yaml
from mingle.errors import CheckpointError, ConfigError, MingleError, MismatchError, UnknownNameError
from mingle.methods import METHODS
from mingle.methods.average import Average
from mingle.registry import Registry


@dataclass
class Point:
    """An entry point of another distribution."""

    name: str
    value: str = "other_package:THING"

    def load(self):
        return f"loaded {self.name}"


@pytest.fixture
def external(monkeypatch):
    """Makes other distributions offer plug-ins to a fresh registry of methods."""

    def offer(*points):
        asked = []

        def entry_points(*, group):
            asked.append(group)
            return points

        monkeypatch.setattr("mingle.registry.entry_points", entry_points)
        registry = Registry("method", "mingle.methods")
        registry.asked = asked
        return registry

    return offer


def test_names_are_the_files_of_the_package():
    assert METHODS.names() == sorted(METHODS.names())
    assert {"mingle", "average", "task_arithmetic", "individual", "pretrained"} <= set(METHODS.names())
    assert not [name for name in METHODS.names() if name.startswith(("_", "base_"))]
    assert METHODS.get("average") is Average


def test_shared_files_are_no_plug_ins():
    for name in ("base_method", "_mingle_options", "__init__"):
        with pytest.raises(UnknownNameError):
            METHODS.get(name)


def test_plug_ins_of_other_distributions_are_found(external):
    registry = external(Point("magic"))
    assert "magic" in registry.names()
    assert registry.asked == ["mingle.methods"]
    assert registry.get("magic") == "loaded magic"


@pytest.mark.parametrize("points", [(Point("average"),), (Point("magic"), Point("magic", "third:THING"))])
def test_duplicates_are_refused(external, points):
    registry = external(*points)
    with pytest.raises(
        ConfigError, match=f"method '{points[0].name}' is registered twice .again by"
    ) as error:
        registry.names()
    assert points[-1].value in str(error.value)
    with pytest.raises(ConfigError, match="registered twice"):
        registry.get("magic")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("mingl", "did you mean mingle"),
        ("task_arithmetics", "did you mean task_arithmetic?"),
        ("Average", "did you mean average?"),
        ("zzz", "known: adamerging, average, "),
    ],
)
def test_near_names_are_suggested(external, wrong, hint):
    with pytest.raises(UnknownNameError) as error:
        external().get(wrong)
    assert str(error.value).startswith(f"unknown method '{wrong}'; {hint}")


# --- options


class Example(Options):
    """Options to try."""

    rank: int = Field(4, ge=1)
    scale: float = 0.5
    name: str = "x"


def test_unknown_keys_are_errors_with_the_nearest_right_one():
    with pytest.raises(ConfigError) as error:
        Example.parse({"ranks": 3}, "here")
    assert str(error.value) == "here: unknown option 'ranks'; did you mean 'rank'?"
    with pytest.raises(ConfigError) as error:
        Example.parse({"zzz": 3}, "here")
    assert str(error.value) == "here: unknown option 'zzz'; known: rank, scale, name"


def test_every_mistake_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        Example.parse({"ranks": 3, "rank": 0, "scale": "big"}, "here")
    text = str(error.value)
    assert text.startswith("here: ")
    assert "option 'rank': input should be greater than or equal to 1, found 0" in text
    assert "option 'scale': " in text
    assert "found 'big'" in text
    assert "unknown option 'ranks'" in text
    assert "\n" not in text


def test_options_are_frozen_and_replaced():
    options = Example.parse({"rank": 7}, "here")
    with pytest.raises(ValueError, match="frozen"):
        options.rank = 8
    changed = options.replace({"scale": 2}, "there")
    assert (changed.rank, changed.scale, options.scale) == (7, 2.0, 0.5)
    with pytest.raises(ConfigError, match="there: option 'rank'"):
        options.replace({"rank": -1}, "there")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match="option 'scale': input should be a finite number"):
        Example.parse({"scale": value}, "here")


def test_yaml_is_a_mapping_of_options(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("rank: 3\n1: one\nnested: {a: [1, 2]}\n")
    assert read_yaml(file) == {"rank": 3, "1": "one", "nested": {"a": [1, 2]}}
    assert read_yaml(str(file))["rank"] == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"- 1\n- 2\n", "expected a mapping of options, found list"),
        (b"", "expected a mapping of options, found NoneType"),
        (b"a: [1", "not readable as YAML"),
        (b"\xff\xfe\x00", "not readable as YAML"),
        (b"!!python/object/apply:os.system ['true']", "not readable as YAML"),
        (b"[" * 5000, "not readable as YAML"),
    ],
)
def test_other_yaml_is_refused_in_one_line(tmp_path, text, reason):
    file = tmp_path / "a.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(file)
    assert str(error.value).startswith(f"{file}: {reason}")
    assert "\n" not in str(error.value)


def test_missing_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: not readable as YAML"):
        read_yaml(tmp_path / "no.yaml")


# --- errors


def test_mismatches_are_listed_under_one_headline():
    one, two = MismatchError("here", ["a: missing"]), MismatchError("here", ["a: missing", "b: shape"])
    assert str(one).startswith("here: 1 mismatch with the base")
    assert str(two).startswith("here: 2 mismatches with the base")
    assert str(two).splitlines()[1:] == ["  - a: missing", "  - b: shape"]
    assert two.problems == ["a: missing", "b: shape"]
    assert isinstance(two, CheckpointError)
    assert isinstance(two, MingleError)


def test_tree_of_errors_is_the_one_drawn():
    lines = [re.match(r"    ([│├└─ ]*)(\w+Error)\b", line) for line in errors.__doc__.splitlines()]
    drawn = {line[2]: len(line[1]) // 4 for line in lines if line}
    depth = {
        name: len(kind.__mro__) - len(MingleError.__mro__)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
    }
    assert drawn == depth
    assert len(drawn) > 10
