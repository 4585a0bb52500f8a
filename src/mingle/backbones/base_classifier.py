"""Classifiers: the backbone is merged, and every task keeps the head that it was fine-tuned with.

A head's tensors go by their names in the library's class, so that a merged model and a task's head together
are a checkpoint of that class. Shapes: N samples; C classes; d the width of what the head reads.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from mingle.backbones._head_files import read_head
from mingle.backbones._names import class_names
from mingle.backbones.base_backbone import Head
from mingle.backbones.base_transformers import TransformersBackbone
from mingle.errors import CheckpointError
from mingle.weights import Checkpoint


class ClassifierBackbone(TransformersBackbone):
    """A family whose heads are one Linear, or a hidden one before it."""

    output: ClassVar[tuple[str, ...]] = ("classifier",)
    """Names that a head's last Linear has in the classes of the family."""

    hidden: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {}
    """Names that a head's hidden Linear has, and the function that follows it."""

    def head(
        self, checkpoint: Checkpoint, given: Path | Tensor | None = None, *, base: Checkpoint | None = None
    ) -> Head | None:
        """The checkpoint's own head; or a file, or ``head.safetensors`` beside it, with the head's tensors.

        A file names them as the checkpoint of a whole classifier does. A tensor (C, d) is the weight of a
        head that is one Linear, without a bias. Class names are those of the file's metadata (``classes``, a
        JSON list), or else ``id2label`` of the checkpoint's config.json.
        Raises CheckpointError.
        """
        described = checkpoint if checkpoint.config or base is None else base
        beside = checkpoint.folder / "head.safetensors"
        file = given if given is not None or not beside.exists() else beside
        last = self._last(self.head_parameters(described))
        named = None
        if isinstance(file, Tensor):
            where, bias = "head", file.new_zeros(len(file))
            tensors = {f"{last}.weight": file, f"{last}.bias": bias}
        elif file is not None:
            where, (stored, named) = str(file), read_head(file)
            tensors = {name: tensor.float() for name, tensor in stored.items()}
        else:
            where, tensors = checkpoint.source, self.head_tensors(checkpoint, described)
            if f"{last}.weight" not in tensors:
                return None
        return self._checked(where, tensors, named, checkpoint, base or described)

    def classify(self, features: Tensor, head: Head) -> Tensor:
        """``W f + b``, or ``W φ(W₁ f + b₁) + b`` with a hidden Linear: (N, C), in float32 at least."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        weights = {name: tensor.to(features) for name, tensor in head.tensors.items()}
        for name, function in self.hidden.items():
            if f"{name}.weight" in weights:
                features = function(linear(features, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        last = self._last(weights)
        return linear(features, weights[f"{last}.weight"], weights[f"{last}.bias"])

    def _last(self, tensors: Mapping[str, Tensor]) -> str:
        return next((name for name in self.output if f"{name}.weight" in tensors), self.output[0])

    def _checked(
        self,
        where: str,
        tensors: dict[str, Tensor],
        named: list[str] | None,
        checkpoint: Checkpoint,
        described: Checkpoint,
    ) -> Head:
        kind = checkpoint.config.get("problem_type")
        if kind not in (None, "single_label_classification"):
            raise CheckpointError(f"{where}: expected one class per sample, found problem_type {kind!r}")
        parameters = self.head_parameters(described)
        last = f"{self._last(parameters)}."
        classes = len(tensors[f"{last}weight"]) if f"{last}weight" in tensors else 0
        expected = {
            name: (classes, *tensor.shape[1:]) if name.startswith(last) else tuple(tensor.shape)
            for name, tensor in parameters.items()
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if wrong:
            name = wrong[0]
            raise CheckpointError(
                f"{where}: not a head of the base's class: {name!r}: expected {expected.get(name, 'none')}, "
                f"found {found.get(name, 'none')}"
            )
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise CheckpointError(f"{where}: the head holds NaN or Inf")
        return Head(class_names(where, classes, "classifier rows", checkpoint.config, named), tensors)
