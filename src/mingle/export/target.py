"""The interface of an export target."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from mingle.config import Options
from mingle.errors import ExportError
from mingle.methods import NoOptions
from mingle.methods.base_method import Progress
from mingle.state import MergeRun

OptionsT = TypeVar("OptionsT", bound=Options)


class Target(ABC, Generic[OptionsT]):
    """A form that a run can be written in. Its options are typed fields, like those of a method."""

    options_type: ClassVar[type[Options]] = NoOptions

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @classmethod
    def with_options(cls, values: Mapping[str, Any]) -> Self:
        """The target with some options changed. Raises ConfigError."""
        return cls(cls.options_type.parse(dict(values), f"export to {cls.name()!r}"))  # type: ignore[arg-type]

    @classmethod
    def name(cls) -> str:
        """The name it is registered under: its file's stem."""
        return cls.__module__.rpartition(".")[2]

    @abstractmethod
    def check(self, run: MergeRun) -> None:
        """Refuses a run that has no such form, before anything is written. Raises ExportError."""

    @abstractmethod
    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """Writes the files into a new folder; returns what ``export.json`` says about them."""

    def refusal(self, run: MergeRun, reason: str, advice: str) -> ExportError:
        """The error for a run that has no such form."""
        return ExportError(
            f"{run.path}: no export to {self.name()!r}: method {run.header['method']!r} {reason}; {advice}"
        )
