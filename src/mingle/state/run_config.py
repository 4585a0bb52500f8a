"""How a run is started, from a YAML file and from explicit choices, and what it says of itself."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mingle.config import Options, read_yaml, shortened
from mingle.errors import RunDamagedError


class RunConfig(Options):
    """``options`` change single options of the preset."""

    method: str = "mingle"
    preset: str = "default"
    backbone: str = "clip"
    seed: int = Field(42, ge=0, lt=2**63)
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None, given: dict[str, Any]) -> Self:
        """The YAML file, if one is named, with explicit choices on top. Raises ConfigError."""
        stored = read_yaml(path) if path else {}
        return cls.parse({**stored, **given}, str(path) if path else "configuration")


class _Stored(BaseModel):
    """What is read of stored JSON; it may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Source(_Stored):
    source: str
    fingerprint: str


class Header(_Stored):
    """The header of a run."""

    method: str
    preset: str
    options: dict[str, Any]
    settings: dict[str, Any]
    backbone: str
    seed: int = Field(ge=0, lt=2**63)
    base: _Source
    versions: dict[str, Any]


class _Energy(_Stored):
    kept: float
    projection: float
    rank: float
    not_merged: float


class _Seeds(_Stored):
    used: int
    pool: int
    selection: str
    source: str


class _Report(_Stored):
    energy: _Energy | None = None
    seeds: _Seeds | None = None
    losses: list[float] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)


class StepInfo(_Stored):
    """``step.json``."""

    seconds: float
    task: str
    classes: list[str] | None
    checkpoint: _Source
    created: str
    versions: dict[str, Any]
    report: _Report


def check_stored(kind: type[_Stored], values: object, where: str) -> None:
    """Refuses JSON of a run that is not of its kind, whatever its hash. Raises RunDamagedError."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        wrong = f"{first['msg'].lower()}, found {shortened(first['input'])}"
        raise RunDamagedError(f"{where}: {key}: {wrong}; restore it from a copy") from error
