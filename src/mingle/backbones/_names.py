"""Files of names: classes, answers, prompt templates."""

import json
from pathlib import Path

from mingle.errors import ConfigError


def read_names(path: Path) -> tuple[str, ...]:
    """Names from a JSON list of strings (``.json``), or one per line; empty lines do not count.

    Raises ConfigError for a file that is not readable, empty, or names something twice.
    """
    try:
        text = path.read_text("utf-8")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable file of names ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: expected a JSON list of strings, or a text file with one name per line")
    return distinct([name for name in names if name], str(path))


def distinct(names: list[str], where: str) -> tuple[str, ...]:
    """The names; refuses none at all, and one that occurs twice. Raises ConfigError."""
    if not names:
        raise ConfigError(f"{where}: expected at least one name, found none")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where}: every name once, found {', '.join(map(repr, twice[:5]))} more than once")
    return tuple(names)
