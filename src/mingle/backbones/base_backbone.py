"""What a family of models has to say about itself.

Shapes: N samples; C classes of one task; batches are keyword arguments of the model's forward.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mingle.backbones._limits import check_counts
from mingle.errors import CheckpointError, ConfigError, DivergedError, UnknownNameError
from mingle.layers import LinearGroup
from mingle.weights import Adapter, Canonical, Checkpoint, open_checkpoint

FORWARD_BATCH = 64
"""Samples per forward pass where no gradient is needed."""

Batch = dict[str, Tensor]
Samples = Tensor | Sequence[Image] | Sequence[str]
"""Raw samples of one task: uint8 images (N, 3, H, W), images of any size, or texts."""


@dataclass(frozen=True)
class Head:
    """A task's frozen classifier: class names and the tensors that the backbone turns into logits."""

    classes: tuple[str, ...]
    tensors: dict[str, Tensor]

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Refuses labels (N,) that are no numbers of its classes. Raises CheckpointError."""
        if not labels.numel() or 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            return
        shown = ", ".join(self.classes[:3]) + (", …" if len(self.classes) > 3 else "")
        raise CheckpointError(
            f"{where}: labels {int(labels.min())}…{int(labels.max())}, but the head has {len(self.classes)} "
            f"classes ({shown}); is it the head of another task?"
        )


@dataclass(frozen=True)
class Lesson:
    """What a student is to match on N samples: the teacher's logits, and the classes (N,) it predicts.

    Logits are (N, C), or (N, L, V) for models that write text; ``mask`` (N, L) then marks the tokens that
    count, and ``batch`` holds what the teacher wrote. A prediction that is no class is −1.
    """

    batch: Batch
    logits: Tensor
    classes: Tensor
    mask: Tensor | None = None

    def take(self, index: Tensor) -> "Lesson":
        """The chosen samples."""
        mask = None if self.mask is None else self.mask[index]
        return Lesson(take(self.batch, index), self.logits[index], self.classes[index], mask)


class Backbone(ABC):
    """One family of models. A method sees layers and logits through it, never images or text."""

    preset: ClassVar[str] = "default"
    """The preset of a method that benchmarks use for this family, where the method has it."""

    family: ClassVar[str]
    """What a model of the family is called in messages."""

    model_types: ClassVar[tuple[str, ...]]
    """The ``model_type`` that a model of the family has in its config.json."""

    decisive: ClassVar[tuple[str, ...]]
    """Values of the configuration in which a checkpoint must agree with its base, beside all shapes."""

    writes: ClassVar[bool] = False
    """Whether models answer in words, so that there are no logits of classes."""

    optional: ClassVar[Collection[str]] = ()
    """Tensors that a fine-tuned checkpoint may leave out; the base's are used."""

    companions: ClassVar[tuple[str, ...]] = ()
    """Files beside a base's weights that only this family has, and needs to open or prepare for them."""

    def open(self, source: str | Path, base: Checkpoint | None = None) -> Checkpoint:
        """Opens a folder, file, hub id or adapter with this family's tensor names. Raises CheckpointError.

        ``base``: what an adapter changes, and whose configuration a source without a config.json has.
        """
        found = open_checkpoint(source, base=base)
        check_counts(found)
        described = found if found.config or base is None else base
        if isinstance(found, Adapter):
            found.check_tied(self.tied(described))
        return found.renamed(self.naming(described))

    def tied(self, described: Checkpoint) -> Mapping[str, str]:
        """Second names of parameters that are one, and the first names they go by. Raises CheckpointError."""
        del described
        return {}

    def naming(self, described: Checkpoint) -> Canonical:
        """How files of the model that a configuration describes name its tensors. Raises CheckpointError."""
        del described
        return self.canonical_name

    def canonical_name(self, stored_name: str) -> str | None:
        """The model's name for a stored tensor; None for tensors that are not part of the merged model."""
        return stored_name

    @abstractmethod
    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a configuration class of transformers
        """The configuration of the merged model, defaults filled in. Raises CheckpointError."""

    def check_family(self, checkpoint: Checkpoint, base: Checkpoint | None = None) -> None:
        """Refuses a configuration of another family, or one that differs from the base's in what matters.

        A checkpoint without a configuration is taken to have the base's. Raises CheckpointError.
        """
        kind = checkpoint.config.get("model_type")
        if kind is None and base is not None and not checkpoint.config:
            return
        if kind not in self.model_types:
            raise CheckpointError(
                f"{checkpoint.source}: expected a {self.family} (model_type "
                f"{' or '.join(map(repr, self.model_types))} in config.json), found {kind!r}; "
                + (_other_family(kind) if base is None else "merge only fine-tunings of the base")
            )
        if base is None:
            return
        found, wanted = self.config(checkpoint), self.config(base)
        pairs = {name: (getattr(found, name, None), getattr(wanted, name, None)) for name in self.decisive}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differing:
            what = ", ".join(f"{name} {own!r} (base {base!r})" for name, (own, base) in differing.items())
            raise CheckpointError(f"{checkpoint.source}: config.json differs from the base's: {what}")

    @abstractmethod
    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The model of ``checkpoint.config`` on the meta device, without weights. Raises CheckpointError."""

    def build(
        self, checkpoint: Checkpoint, fallback: Checkpoint | None = None, dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """The checkpoint as a frozen model in eval mode; tensors it leaves out come from ``fallback``."""
        model = self.skeleton(fallback or checkpoint)
        entries = {**(fallback.entries if fallback else {}), **checkpoint.entries}
        state = {name: entry.read().to(dtype) for name, entry in entries.items()}
        return self.load(model, state, checkpoint.source)

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills a skeleton with tensors by canonical name. Raises CheckpointError when they do not fit it."""
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if wrong:
            name = wrong[0]
            raise CheckpointError(
                f"{source}: {len(wrong)} tensors do not fit the model of config.json; {name!r}: "
                f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
            )
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    @abstractmethod
    def groups(self, model: nn.Module, sites: str) -> list[LinearGroup]:
        """The Linears to merge, those that read the same tensor together. Raises UnknownNameError."""

    @abstractmethod
    def width(self, model: nn.Module) -> int:
        """Hidden width; settings tuned to width 768 are scaled by it."""

    @abstractmethod
    def head(
        self, checkpoint: Checkpoint, given: Path | Tensor | None = None, *, base: Checkpoint | None = None
    ) -> Head | None:
        """The classifier ``given`` as a file or a tensor, or else the one beside the checkpoint, if any.

        With ``base`` it is also checked to fit the base's features.

        Raises CheckpointError.
        """

    def zero_shot_head(
        self, base: Checkpoint, classes: Sequence[str], templates: Sequence[str] | None = None
    ) -> Head:
        """A head out of class names alone. Raises ConfigError for a family that cannot make one."""
        del classes, templates
        raise ConfigError(f"{base.source}: models of this family cannot classify by class names; pass a head")

    @abstractmethod
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the heads read: (N, d)."""

    @abstractmethod
    def classify(self, features: Tensor, head: Head) -> Tensor:
        """Logits (N, C) of one task."""

    def logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """What a student matches (see Lesson), with gradients: (N, C), or (N, L, V) for text."""
        return self.classify(self.features(model, batch), head)

    def class_logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Logits of the head's classes with gradients: (N, C). Raises ConfigError for models of text."""
        return self.classify(self.features(model, batch), head)

    @torch.no_grad()
    def teach(self, teacher: nn.Module, batch: Batch, head: Head) -> Lesson:
        """What a fine-tuned model says of every sample."""
        features = torch.cat([self.features(teacher, part) for part in split(batch, FORWARD_BATCH)])
        logits = self.classify(features, head)
        return Lesson(batch, logits, logits.argmax(-1))

    def probabilities(self, features: Tensor, head: Head) -> Tensor:
        """Class probabilities (N, C); a row of zeros is no class of the task. Raises DivergedError."""
        return self._finite(features, head).softmax(-1)

    def decide(self, features: Tensor, head: Head) -> Tensor:
        """The predicted class of every sample, −1 for none: (N,). Raises DivergedError."""
        return self._finite(features, head).argmax(-1)

    def _finite(self, features: Tensor, head: Head) -> Tensor:
        """Logits (N, C); NaN would be taken for a class."""
        logits = self.classify(features, head)
        if not torch.isfinite(logits).all():
            raise DivergedError(
                "prediction: logits that are NaN or Inf; the weights are too large for the precision that "
                "the model computes in (float16 ends at 65504: use bfloat16 or float32)"
            )
        return logits

    def predict(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """The predicted class of every sample, −1 for none: (N,)."""
        return self.decide(self.features(model, batch), head)

    @abstractmethod
    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Raw samples (uint8 tensors, images, …) to a batch for the model. Raises SeedsError."""


def _other_family(kind: object) -> str:
    """What to do with a base that another family, or none, reads."""
    from mingle.backbones import BACKBONES

    readers = [name for name in BACKBONES.names() if kind in BACKBONES.get(name).model_types]
    if readers:
        return f"pass backbone={readers[0]!r} (--backbone {readers[0]})"
    return "no family that is installed reads it, see docs/adding-a-backbone.md"


def take(batch: Batch, index: Tensor | slice) -> Batch:
    """The chosen samples of a batch."""
    return {name: tensor[index] for name, tensor in batch.items()}


def count(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(iter(batch.values())))


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Consecutive parts of at most ``size`` samples."""
    return (take(batch, slice(start, start + size)) for start in range(0, count(batch), size))


def choose_sites(sites: str, known: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The layer kinds of a selection. Raises UnknownNameError."""
    if sites not in known:
        raise UnknownNameError("sites", sites, known)
    return known[sites]
