"""How a run is started, from a YAML file and from explicit choices."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field

from mingle.config import Options, read_yaml


class RunConfig(Options):
    """``options`` change single options of the preset."""

    method: str = "mingle"
    preset: str = "default"
    backbone: str = "clip"
    seed: int = Field(42, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None, given: dict[str, Any]) -> Self:
        """The YAML file, if one is named, with explicit choices on top. Raises ConfigError."""
        stored = read_yaml(path) if path else {}
        return cls.parse({**stored, **given}, str(path) if path else "configuration")
