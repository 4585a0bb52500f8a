"""Watching what layers see, with hooks that always come off."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mingle.layers import MixtureLinear
from mingle.subspace import SecondMoment


@contextmanager
def watch_inputs(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, calls ``see(name, input)`` whenever one of the modules runs."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def second_moments(
    layers: Mapping[str, MixtureLinear], passes: Iterable[Callable[[], object]], *, augmented: bool
) -> dict[str, SecondMoment]:
    """``M = Σ x xᵀ`` of the inputs of each layer over forward passes; one per group of shared inputs.

    ``layers`` holds the first Linear of every group; ``passes`` are calls that run the model. Padding
    tokens (the layer's mask) do not count.
    """
    moments = {
        name: SecondMoment(layer.A.shape[1], augmented=augmented, dtype=layer.gate.weight.dtype)
        for name, layer in layers.items()
    }

    def see(name: str, x: Tensor) -> None:
        moments[name].add(x, layers[name].pool.mask_of(x))

    with watch_inputs(layers, see), torch.no_grad():
        for run in passes:
            run()
    return moments
