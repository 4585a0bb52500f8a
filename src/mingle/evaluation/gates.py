"""What the gates of a mixture say about the samples of every task.

Shapes: N samples of a batch; T experts; gates (N, T) in every layer.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mingle.adaptation import watch_inputs
from mingle.backbones import Backbone, Head, count
from mingle.evaluation.matrix import BATCH, ScoredTask
from mingle.layers import mixtures


class GateActivations(NamedTuple):
    """What gates make of the test samples of each task.

    ``mean[layer][input task][expert]``: the mean gate. ``strongest[input task][expert]``, the router's
    confusion matrix: the share of samples whose largest ``|g|`` is that expert's, in the mean over layers.
    ``routed[input task]``: accuracy where the head of the largest ``|g|``, in the mean over layers, answers.
    """

    layers: list[str]
    inputs: list[str]
    experts: list[str]
    mean: list[list[list[float]]]
    strongest: list[list[float]]
    routed: list[float]

    @property
    def router_accuracy(self) -> float:
        """``mean_i strongest[i][i]``."""
        places = {task: index for index, task in enumerate(self.experts)}
        own = [row[places[task]] for task, row in zip(self.inputs, self.strongest, strict=True)]
        return sum(own) / len(own)

    @property
    def routed_accuracy(self) -> float:
        """``mean_i routed[i]``."""
        return sum(self.routed) / len(self.routed)


@torch.no_grad()
def gate_activations(
    backbone: Backbone, model: nn.Module, heads: Mapping[str, Head], tests: Mapping[str, ScoredTask]
) -> GateActivations | None:
    """The gates of a model on every task's test samples; None for a model without mixtures.

    ``heads``: those of all experts, in their order.
    """
    layers = dict(mixtures(model))
    if not layers:
        return None
    sums = {name: torch.zeros(len(tests), len(heads), dtype=torch.float64) for name in layers}
    strongest = torch.zeros(len(tests), len(heads), dtype=torch.float64)
    routed = torch.zeros(len(tests), dtype=torch.float64)
    last: dict[str, Tensor] = {}

    def remember(name: str, x: Tensor) -> None:
        # A model that writes runs a layer once per token; its last run has seen all of them.
        last[name] = layers[name].gate.of(x, layers[name].pool).double()

    with watch_inputs(layers, remember):
        for row, test in enumerate(tests.values()):
            labels = torch.split(test.labels, BATCH)
            for part, true in zip(test.batches(BATCH), labels, strict=True):
                features = backbone.features(model, part)
                samples = count(part)
                # A sample that is cut into rows has the same gates in all of them.
                found = {name: gates[:: len(gates) // samples] for name, gates in last.items()}
                for name, gates in found.items():
                    sums[name][row] += gates.sum(0)
                    strongest[row] += one_hot(gates.abs().argmax(1), len(heads)).sum(0) / len(layers)
                chosen = torch.stack([gates.abs() for gates in found.values()]).mean(0).argmax(1)
                names = [heads[test.task].classes[i] for i in true.tolist()]
                routed[row] += _hits(backbone, features, chosen, list(heads.values()), names)
    sizes = torch.tensor([len(test.labels) for test in tests.values()])
    return GateActivations(
        list(layers),
        list(tests),
        list(heads),
        [(total / sizes[:, None]).tolist() for total in sums.values()],
        (strongest / sizes[:, None]).tolist(),
        (routed / sizes).tolist(),
    )


def _hits(backbone: Backbone, features: Tensor, chosen: Tensor, heads: list[Head], names: list[str]) -> int:
    """How many samples get their class's name from the head that was chosen for each, by its number."""
    hits = 0
    for expert in sorted(set(chosen.tolist())):
        mine = (chosen == expert).nonzero()[:, 0]
        said = backbone.decide(features[mine], heads[expert]).tolist()
        classes = heads[expert].classes
        hits += sum(
            answer >= 0 and classes[answer] == names[i] for i, answer in zip(mine.tolist(), said, strict=True)
        )
    return hits
