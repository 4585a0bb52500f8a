"""The interface of a merging method.

``init(base) -> state``, ``update(state, arrival) -> state``, ``model(state) -> nn.Module``: nothing is kept
anywhere else, so stopping and resuming is nothing special. A state is the base plus one step per task, and
a step holds only what that task added: tensors by file and name, the task's head, and a report.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from mingle.backbones import Backbone, Batch, Head
from mingle.config import Options
from mingle.errors import CheckpointError, ConfigError, SeedsError, UnknownNameError
from mingle.layers import kept_wide
from mingle.weights import Checkpoint

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` during long work."""


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""
    del what, done, total


def labelled(progress: Progress, prefix: str) -> Progress:
    """Shows the same with ``prefix`` before what is done."""
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)


@dataclass(frozen=True)
class Base:
    """The pretrained model θ0 and the family it belongs to."""

    backbone: Backbone
    checkpoint: Checkpoint
    dtype: torch.dtype = torch.float32
    """What models compute in. Half precision is for using a merged model, see Placement."""

    def model(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A fresh copy of the base, frozen, in eval mode; ``weights`` replace those of its own."""
        skeleton = self.backbone.skeleton(self.checkpoint)
        state = self.tensors if weights is None else self._narrowed(weights.items(), skeleton)
        return self.backbone.load(skeleton, dict(state), self.checkpoint.source)

    @cached_property
    def outline(self) -> nn.Module:
        """The model without its weights, to look at only."""
        return self.backbone.skeleton(self.checkpoint)

    def check(self) -> None:
        """Refuses a base that does not fit its own configuration, going by shapes. Raises CheckpointError."""
        entries = self.checkpoint.entries
        shapes = {n: torch.empty(e.shape, dtype=self.dtype, device="meta") for n, e in entries.items()}
        self.backbone.load(self.backbone.skeleton(self.checkpoint), shapes, self.checkpoint.source)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The base's tensors by name; shared by every model that is built from it, so never written to."""
        return self._narrowed(self.checkpoint.tensors(), self.outline)

    def _narrowed(self, tensors: Iterable[tuple[str, Tensor]], skeleton: nn.Module) -> dict[str, Tensor]:
        """The tensors in the base's dtype, one after the other, but for what is never in half precision.

        Raises CheckpointError where float16 cannot hold one.
        """
        wide = kept_wide(skeleton, self.dtype)
        found = {}
        for name, tensor in tensors:
            found[name] = tensor.to(torch.float32 if wide & set(name.split(".")) else self.dtype)
            if self.dtype == torch.float16 and not torch.isfinite(found[name]).all():
                most = float(tensor.abs().max())
                raise CheckpointError(
                    f"{self.checkpoint.source}: {name}: values up to {most:.3g}, but float16 ends at 65504; "
                    "use bfloat16 or float32"
                )
        return found


@dataclass(frozen=True)
class SeedPool:
    """Unlabelled samples of a task, ready for the model, to draw seeds from.

    ``labels`` (N,) only for the paper's protocol and for methods that train on them. ``ids`` are hashes of
    the raw samples, by which the evaluation keeps used seeds out of the score.
    """

    batch: Batch
    labels: Tensor | None = None
    ids: tuple[str, ...] = ()
    source: str = "memory"


@dataclass(frozen=True)
class Arrival:
    """One task: its name, its fine-tuned checkpoint, and what it may be adapted on.

    ``replay`` holds explicit choices of a method (initial gates, batches, …) instead of drawn ones.
    """

    name: str
    checkpoint: Checkpoint
    head: Head | None = None
    seeds: SeedPool | None = None
    seed: int = 0
    replay: Any = None


@dataclass(frozen=True)
class Step:
    """What one task added: tensors by file stem and name, its head, and a report of plain values."""

    task: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    head: Head | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A merged model after some tasks. Immutable; a prefix of its steps is the model as it was then."""

    base: Base
    steps: tuple[Step, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the merged tasks, oldest first."""
        return tuple(step.task for step in self.steps)

    def step(self, task: str) -> Step:
        """The step of a task. Raises UnknownNameError."""
        for step in self.steps:
            if step.task == task:
                return step
        raise UnknownNameError("task", task, self.tasks)

    def prefix(self, steps: int) -> Self:
        """The state after the first ``steps`` tasks."""
        return replace(self, steps=self.steps[:steps])

    def append(self, step: Step) -> Self:
        """The state with one more step."""
        return replace(self, steps=(*self.steps, step))


def require_pool(arrival: Arrival) -> SeedPool:
    """The arrival's seeds, for methods that need them. Raises SeedsError."""
    if arrival.seeds is None:
        raise SeedsError(
            f"task {arrival.name!r}: this method adapts on seed samples (unlabelled) and none were given; "
            "name a folder of images, an array file or suite:task"
        )
    return arrival.seeds


def require_seeds(arrival: Arrival) -> tuple[SeedPool, Head]:
    """The arrival's seeds and head, for methods that need them. Raises SeedsError, CheckpointError."""
    pool = require_pool(arrival)
    if arrival.head is None:
        raise CheckpointError(
            f"{arrival.checkpoint.source}: no class head found; put head.safetensors (for CLIP: "
            "class_embeddings, classes × dimension) beside the checkpoint, or pass head= (--head)"
        )
    return pool, arrival.head


class NoOptions(Options):
    """A method without options."""


OptionsT = TypeVar("OptionsT", bound=Options)


class Method(ABC, Generic[OptionsT]):
    """A merging method. Its options are typed fields of a frozen class; presets are named values of it."""

    options_type: ClassVar[type[Options]] = NoOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    forgets: ClassVar[bool] = True
    """Whether a later step can change the predictions for an earlier task."""
    needs_task: ClassVar[bool] = False
    """Whether ``model`` must be told the task (bounds and oracles; not one merged model)."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @classmethod
    def with_preset(cls, preset: str = "default", changes: Mapping[str, Any] | None = None) -> Self:
        """The method with a named preset and some options changed. Raises ConfigError."""
        if preset not in cls.presets:
            raise UnknownNameError("preset", preset, cls.presets)
        where = f"method {cls.name()!r}"
        chosen = cls.options_type.parse(dict(cls.presets[preset]), where)
        return cls(chosen.replace(dict(changes or {}), where))  # type: ignore[arg-type]

    @classmethod
    def name(cls) -> str:
        """The name it is registered under: its file's stem."""
        return cls.__module__.rpartition(".")[2]

    def init(self, base: Base) -> State:
        """The state before the first task."""
        return State(base)

    @abstractmethod
    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """The state after one more task. Inputs are not changed."""

    @abstractmethod
    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The merged model, with the interface of the base's class; ``task`` only where ``needs_task``."""

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used, after rules that depend on the model are applied."""
        del base
        return self.options.model_dump()

    @property
    def needs_seeds(self) -> bool:
        """Whether ``update`` reads seed samples and the task's head."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether ``update`` trains on labels: its seeds are then all the labelled samples it may use."""
        return False

    @property
    def scored_seeds(self) -> bool:
        """Whether seeds come from the labelled test images that are also scored (the paper's protocol)."""
        return False

    def _require_task(self, task: str | None) -> str:
        if task is None:
            raise ConfigError(
                f"method {self.name()!r} has one model per task, not one for all; say which task is asked for"
            )
        return task
