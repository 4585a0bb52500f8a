"""What the gates of a mixture say about the samples of every task."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mingle.adaptation import watch_inputs
from mingle.backbones import Backbone, count
from mingle.evaluation.matrix import BATCH, ScoredTask
from mingle.layers import mixtures


class GateActivations(NamedTuple):
    """Mean gate value ``mean[layer][input task][expert]`` over the test samples of each task."""

    layers: list[str]
    inputs: list[str]
    experts: list[str]
    mean: list[list[list[float]]]


@torch.no_grad()
def gate_activations(
    backbone: Backbone, model: nn.Module, experts: tuple[str, ...], tests: Mapping[str, ScoredTask]
) -> GateActivations | None:
    """Mean gates per layer, input task and expert; None for a model without mixtures."""
    layers = dict(mixtures(model))
    if not layers:
        return None
    sums = {name: torch.zeros(len(tests), len(experts), dtype=torch.float64) for name in layers}
    last: dict[str, Tensor] = {}

    def remember(name: str, x: Tensor) -> None:
        # A model that writes runs a layer once per token; its last run has seen all of them.
        last[name] = layers[name].gate.of(x, layers[name].pool).double().mean(0)

    with watch_inputs(layers, remember):
        for row, test in enumerate(tests.values()):
            for part in test.batches(BATCH):
                backbone.features(model, part)
                for name in layers:
                    sums[name][row] += count(part) * last[name]
    sizes = torch.tensor([[len(test.labels)] for test in tests.values()])
    mean = [(sums[name] / sizes).tolist() for name in layers]
    return GateActivations(list(layers), list(tests), list(experts), mean)
