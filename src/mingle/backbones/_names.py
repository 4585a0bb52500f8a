"""Files of names: classes, answers, prompt templates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mingle.errors import CheckpointError, ConfigError
from mingle.files import parse_json, read_text


def read_names(path: Path) -> tuple[str, ...]:
    """Names from a JSON list of strings (``.json``), or one per line; empty lines do not count.

    Raises ConfigError for a file that is not readable, empty, or names something twice.
    """
    try:
        text = read_text(path)
        names = parse_json(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable file of names ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: expected a JSON list of strings, or a text file with one name per line")
    return distinct([name for name in names if name], str(path))


def distinct(names: list[str], where: str) -> tuple[str, ...]:
    """The names; refuses none at all, and one that occurs twice. Raises ConfigError."""
    if not names:
        raise ConfigError(f"{where}: expected at least one name, found none")
    twice = sorted(name for name, number in Counter(names).items() if number > 1)
    if twice:
        raise ConfigError(f"{where}: every name once, found {', '.join(map(repr, twice[:5]))} more than once")
    return tuple(names)


def class_names(
    where: str, number: int, what: str, config: Mapping[str, Any], named: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Names of a head's classes: ``named``, or else ``id2label`` of a config.json, or else numbers.

    Raises CheckpointError where they are not as many as there are classes (``what``) in the head, or where
    ``label2id`` numbers them otherwise.
    """
    labels, indices = config.get("id2label") or {}, config.get("label2id") or {}
    if not isinstance(labels, dict) or not isinstance(indices, dict):
        raise CheckpointError(f"{where}: expected objects id2label and label2id in config.json")
    names = list(named) if named else [labels.get(str(i), str(i)) for i in range(number)]
    known = len(names) if named else len(labels)
    if known not in (0, number):
        source = "its metadata" if named else "id2label of config.json"
        raise CheckpointError(f"{where}: {number} {what}, but {source} names {known} classes")
    for name, index in ({} if named else indices).items():
        # Names that id2label does not have are the library's own, where only id2label was set.
        if name in names and labels.get(str(index)) != name:
            raise CheckpointError(
                f"{where}: id2label and label2id of config.json contradict each other: class {name!r} is "
                f"{names.index(name)} and {index}; correct the one that is wrong"
            )
    return tuple(map(str, names))
