"""Options: frozen, typed, checked; an unknown key is an error that offers the nearest right one."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from mingle.errors import ConfigError
from mingle.files import YAML_LIMIT, parse_yaml, read_text

SHOWN = 200
"""Characters of a wrong value that a message repeats."""


class Options(BaseModel):
    """Base of every set of options. Subclasses declare typed fields; the fields ARE the options."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validates plain values. Raises ConfigError, one line, naming ``where``, the key and the value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {'; '.join(_explain(cls, e) for e in error.errors())}") from None

    def replace(self, values: dict[str, Any], where: str) -> Self:
        """A copy with some options changed, validated like ``parse``."""
        return type(self).parse({**self.model_dump(), **values}, where)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping. Raises ConfigError."""
    try:
        value = parse_yaml(read_text(Path(path), YAML_LIMIT))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of options, found {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def _explain(cls: type[BaseModel], error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = get_close_matches(key, cls.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields) or 'none'}"
        return f"unknown option {key!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"option {key!r}: {message[0].lower()}{message[1:]}, found {shortened(error['input'])}"


def shortened(value: object) -> str:
    """How a value is written, cut where it would fill a screen."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
