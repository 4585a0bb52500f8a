"""One set of weights as a plain Hugging Face folder, for methods that have one."""

from pathlib import Path
from typing import Any

from pydantic import Field

from mingle.config import Options
from mingle.export.model_files import copy_companions, write_heads, write_weights
from mingle.export.target import Target
from mingle.methods.base_method import Progress
from mingle.methods.base_weights import WeightsMethod
from mingle.state import MergeRun
from mingle.weights import LazyTensors, Spec


class MergedOptions(Options):
    """``shard_mb``: a larger model is split into files of at most so many MB (10^6 bytes)."""

    shard_mb: float = Field(5000, gt=0)


class Merged(Target[MergedOptions]):
    """``model.safetensors``, ``config.json``, what lies beside the base, and ``heads/<task>.safetensors``.

    ``from_pretrained`` of the class that ``architectures`` names gives the weights of ``run.model()``.
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

    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """Streams the weights of the newest step, whatever their size."""
        base, state = run.base, run.state
        stored = WeightsMethod.weights(state)
        specs = {
            name: Spec(tuple(entry.shape), base.dtype) for name, entry in base.checkpoint.entries.items()
        }
        weights = LazyTensors(specs, stored.__getitem__)
        write_weights(folder, weights, shard_bytes=self.options.shard_mb * 1e6, progress=progress)
        config = base.backbone.config(base.checkpoint)
        config.architectures = [type(base.backbone.skeleton(base.checkpoint)).__name__]
        config.dtype = base.dtype  # otherwise the base's, to which the weights would be rounded
        config.save_pretrained(folder)
        copy_companions(base.checkpoint, folder)
        write_heads(folder, state)
        return {"architecture": config.architectures[0]}


PLUGIN = Merged
