"""The merged model as an ONNX graph with the gates inside: every sample finds its own experts."""

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mingle.backbones import Backbone, Batch, Head
from mingle.config import Options
from mingle.errors import ConfigError, ExportError
from mingle.export.model_files import copy_companions
from mingle.export.target import Target
from mingle.methods.base_method import Progress
from mingle.state import MergeRun

FILE, FEATURES, BATCH, TOKENS = "model.onnx", "features", "batch", "tokens"
EXTERNAL_BYTES = 1.5e9
"""Larger weights lie in a file beside the graph: a graph file holds 2 GB at most."""


class OnnxOptions(Options):
    """``logits``: an output of class logits per task, named by the task, beside ``features``."""

    logits: bool = True


class Onnx(Target[OnnxOptions]):
    """``model.onnx``: a batch of any size in, ``features`` (N, d) and logits (N, C) per task out."""

    options_type = OnnxOptions

    def check(self, run: MergeRun) -> None:
        """Refuses models that write text, methods with one model per task, and missing packages."""
        if run.method.needs_task:
            raise self.refusal(run, "has one model per task, not one for all", "use --to hf")
        model: Any = run.backbone.skeleton(run.base.checkpoint)
        if model.can_generate():
            raise ExportError(
                f"{run.path}: no export to 'onnx': a model of backbone {run.header['backbone']!r} writes "
                "text in a loop that one graph does not hold; use --to hf"
            )
        if FEATURES in run.tasks:
            raise ExportError(f"{run.path}: no export to 'onnx': task {FEATURES!r} has the name of an output")
        for package in ("onnx", "onnxscript"):
            try:
                importlib.import_module(package)
            except ImportError:
                raise ConfigError(
                    f"export to 'onnx': needs {package}: pip install 'mingle-merge[onnx]'"
                ) from None

    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """Traces the merged model on two made-up samples; their number is left open in the graph."""
        state = run.state
        heads = {s.task: s.head for s in state.steps if s.head is not None} if self.options.logits else {}
        model = run.model()
        batch, axes = _example(model, run)
        progress("tracing", 0, 1)
        _trace(
            _Graph(model, run.backbone, tuple(batch), heads), batch, axes, (FEATURES, *heads), folder / FILE
        )
        progress("tracing", 1, 1)
        copy_companions(run.base.checkpoint, run.backbone, folder)
        return {"inputs": list(batch), "outputs": [FEATURES, *heads]}


class _Graph(nn.Module):
    """What the graph computes: tensors of the batch in, features and logits out."""

    def __init__(
        self, model: nn.Module, backbone: Backbone, names: tuple[str, ...], heads: Mapping[str, Head]
    ) -> None:
        super().__init__()
        self.model, self.backbone, self.names, self.heads = model, backbone, names, dict(heads)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone.features(self.model, dict(zip(self.names, tensors, strict=True)))
        return (features, *(self.backbone.classify(features, head) for head in self.heads.values()))


def _example(
    model: Any,  # noqa: ANN401 – a class of transformers
    run: MergeRun,
) -> tuple[Batch, list[dict[int, str]]]:
    """Two samples of what the model reads, and which axes are open. Raises ExportError."""
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        high, wide = size if isinstance(size, list | tuple) else (size, size)
        # What the base prepares pictures to need not be the size that its configuration names.
        blank = Image.new("RGB", (wide, high))
        return run.backbone.prepare([blank, blank], run.base.checkpoint), [{0: BATCH}]
    if model.main_input_name == "input_ids":
        ids = torch.ones(2, 8, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids.clone()}, [{0: BATCH, 1: TOKENS}] * 2
    raise ExportError(
        f"export to 'onnx': expected a model of images or texts, found one of {model.main_input_name!r}; "
        "use --to hf"
    )


def _trace(
    graph: _Graph, batch: Batch, axes: list[dict[int, str]], outputs: tuple[str, ...], file: Path
) -> None:
    size = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            graph.eval(),
            tuple(batch.values()),
            input_names=list(batch),
            output_names=list(outputs),
            dynamic_shapes={"tensors": tuple(axes)},
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source of this machine it comes from
    program.save(str(file), external_data=size > EXTERNAL_BYTES)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's own deprecations, and what it says of packages it could use, to itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


PLUGIN = Onnx
