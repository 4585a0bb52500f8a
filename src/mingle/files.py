"""Small files from anywhere, read so that none can do harm: limits on size and nesting, plain names only.

Everything here raises OSError or ValueError; who knows what the file is for makes one of our errors of it.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

NAME_PATTERN = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
"""Names that are one file in one folder on every operating system: no separator, no leading dot."""

TEXT_LIMIT = 64 * 2**20
"""Bytes that a description (configuration, index, manifest) may have."""

DATA_LIMIT = 2**30
"""Bytes that a file of texts may have."""

YAML_LIMIT = 2**20
"""Bytes of YAML; reading it takes seconds per MB."""

YAML_NODES = 100_000
"""Values in a YAML file, each counted as often as aliases repeat it."""

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_plain_name(name: str) -> bool:
    """Whether ``name`` names a file in a folder, and nothing outside it."""
    return re.fullmatch(NAME_PATTERN, name) is not None


def expanded(source: str | Path) -> Path:
    """The path with ``~`` as the user's home; unchanged where there is no such user."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def exists(source: str | Path) -> bool:
    """Whether there is anything; False for what no path can be (too long, say)."""
    try:
        return expanded(source).exists()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """A regular file of at most ``limit`` bytes; links are followed, pipes and devices refused."""
    if path.exists() and not path.is_file():
        raise ValueError("expected a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"expected at most {limit >> 20} MB, found more")
    return data


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """UTF-8 text; every kind of line ending becomes a newline."""
    return read_bytes(path, limit).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:  # noqa: ANN401 – any JSON value
    """A JSON value that can also be written again: nested within reason, no halves of characters."""
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_json(path: Path) -> Any:  # noqa: ANN401 – any JSON value
    """The JSON value in a file, see `parse_json`."""
    return parse_json(read_text(path))


def parse_yaml(text: str) -> Any:  # noqa: ANN401 – any plain value
    """Plain values in YAML: no objects, and no aliases that say a little a great many times."""
    try:
        value = yaml.safe_load(text)
    except Exception as error:  # the library lets errors of many kinds out
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > YAML_NODES:
            raise ValueError(f"expected at most {YAML_NODES} values, counting what aliases repeat")
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list | tuple | set):
            waiting.extend(node)
    return value
