"""One set of weights as a plain Hugging Face folder, for methods that have one."""

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from mingle.backbones.base_transformers import TransformersBackbone
from mingle.config import Options
from mingle.errors import ExportError
from mingle.export.model_files import copy_companions, write_heads, write_weights
from mingle.export.target import Target
from mingle.methods.base_method import Progress
from mingle.methods.base_weights import WeightsMethod
from mingle.state import MergeRun
from mingle.weights import LazyTensors, Spec


class MergedOptions(Options):
    """``shard_mb``: a larger model is split into files of at most so many MB (10^6 bytes).

    ``task``: whose head is part of the model, for classes that have one; a run of one task has no choice.
    """

    task: str | None = None
    shard_mb: float = Field(5000, gt=0)


class Merged(Target[MergedOptions]):
    """``model.safetensors``, ``config.json``, what lies beside the base, and ``heads/<task>.safetensors``.

    ``from_pretrained`` of the class that ``architectures`` names gives the weights of ``run.model()``, with
    the head and the class names of ``task`` where the class has a head; with several tasks and none chosen
    that is the bare class.
    """

    options_type = MergedOptions

    def check(self, run: MergeRun) -> None:
        """Refuses methods whose model is not one set of weights. Raises ExportError."""
        if run.method.needs_task:
            raise self.refusal(run, "has one model per task, not one for all", "use --to hf")
        if not isinstance(run.method, WeightsMethod):
            raise self.refusal(
                run,
                "gives every sample its own weights, so there is no one set of them",
                "use --to hf, or --to onnx for a graph with the gates inside",
            )
        if self.options.task is not None and not _head(run, self.options.task):
            raise ExportError(
                f"{run.path}: task {self.options.task!r} has no head that is part of a model of backbone "
                f"{run.header['backbone']!r}; leave the task out, heads lie beside the model"
            )

    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """Streams the weights of the newest step, whatever their size."""
        base, state = run.base, run.state
        stored = WeightsMethod.weights(state)
        task = self.options.task or (run.tasks[0] if len(run.tasks) == 1 else None)
        head = _head(run, task) if task else {}
        specs = {name: Spec(entry.shape, base.dtype) for name, entry in base.checkpoint.entries.items()}
        specs |= {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in head.items()}
        weights = LazyTensors(specs, lambda name: head[name] if name in head else stored[name])
        write_weights(folder, weights, shard_bytes=self.options.shard_mb * 1e6, progress=progress)
        config = base.backbone.config(base.checkpoint)
        model: Any = base.backbone.skeleton(base.checkpoint)
        bare = bool(_own(run)) and not head
        # The class with a head would make up one that nobody trained.
        config.architectures = [type(model.base_model if bare else model).__name__]
        config.dtype = base.dtype  # otherwise the base's, to which the weights would be rounded
        if head and task:
            config.id2label = dict(enumerate(run.info(task)["classes"]))
            config.label2id = {name: index for index, name in config.id2label.items()}
        config.save_pretrained(folder)
        copy_companions(base.checkpoint, base.backbone, folder)
        write_heads(folder, state)
        details = {"architecture": config.architectures[0], "head": task if head else None}
        if bare:
            details["notes"] = [
                f"no head is part of the model, so it is a bare {config.architectures[0]}; the heads are in "
                "heads/, and --task makes one of them part of a classifier"
            ]
        return details


def _head(run: MergeRun, task: str) -> dict[str, Tensor]:
    """The tensors of a task's head by their names in the class; none where they are no part of it."""
    head = run.head(task)
    inside = tuple(f"{name}." for name in _own(run))
    if head is None or not inside:
        return {}
    return {name: tensor for name, tensor in head.tensors.items() if name.startswith(inside)}


def _own(run: MergeRun) -> tuple[str, ...]:
    """The modules of the class that are a task's head, if it has such."""
    return run.backbone.heads if isinstance(run.backbone, TransformersBackbone) else ()


PLUGIN = Merged
