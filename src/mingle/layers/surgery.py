"""Putting merged layers into a model, finding them, and taking them out again."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mingle.layers.gate import GateReduction, PooledInput
from mingle.layers.mixture import MixtureLinear, is_linear
from mingle.layers.norm import MixtureNorm
from mingle.layers.selection import Selection


@dataclass(frozen=True)
class LinearGroup:
    """Names of Linears that read the same tensor (q, k and v, say), and of the LayerNorm that makes it.

    They share pooled input, second moment and protected subspace; the group goes by its first name.
    ``transposed``: their weights are stored (d_in, d_out), as transformers' Conv1D does (GPT-2).
    """

    linears: tuple[str, ...]
    norm: str | None = None
    transposed: bool = False

    @property
    def name(self) -> str:
        """The name its shared subspace is stored under."""
        return self.linears[0]

    def turned(self, weight: Tensor) -> Tensor:
        """A weight as it is stored -> (d_out, d_in), the shape of the formulas; and back."""
        return weight.mT.contiguous() if self.transposed else weight


def wrap(
    model: nn.Module, groups: Iterable[LinearGroup], reduction: GateReduction = "sample"
) -> dict[str, MixtureLinear]:
    """Replaces every Linear of the groups, in place, by a MixtureLinear without experts.

    Returns them by name, in the order of the groups. An empty mixture computes what the Linear did.
    """
    wrapped: dict[str, MixtureLinear] = {}
    for group in groups:
        pool = PooledInput()
        for name in group.linears:
            linear = model.get_submodule(name)
            if not is_linear(linear):
                raise TypeError(f"{name}: expected an nn.Linear or Conv1D, found {type(linear).__name__}")
            wrapped[name] = MixtureLinear(linear, pool, reduction)
            model.set_submodule(name, wrapped[name])
    return wrapped


def wrap_norms(
    model: nn.Module, groups: Iterable[LinearGroup], layers: Mapping[str, MixtureLinear]
) -> dict[str, MixtureNorm]:
    """Replaces the LayerNorm of every group, in place, by one that follows the group's first gate."""
    wrapped: dict[str, MixtureNorm] = {}
    for group in groups:
        if group.norm is None:
            continue
        norm, reader = model.get_submodule(group.norm), layers[group.name]
        if not isinstance(norm, nn.LayerNorm):
            raise TypeError(f"{group.norm}: expected an nn.LayerNorm, found {type(norm).__name__}")
        wrapped[group.norm] = MixtureNorm(norm, reader.pool, reader.gate)
        model.set_submodule(group.norm, wrapped[group.norm])
    return wrapped


def mixtures(model: nn.Module) -> Iterator[tuple[str, MixtureLinear]]:
    """Every MixtureLinear of a model with its name."""
    for name, module in model.named_modules():
        if isinstance(module, MixtureLinear):
            yield name, module


def select_experts(model: nn.Module, selection: Selection) -> nn.Module:
    """Lets every MixtureLinear of a model use the experts of one selection, and returns the model."""
    for _, layer in mixtures(model):
        layer.selection = selection
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Puts the plain Linears and LayerNorms back, in place, and returns the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MixtureLinear):
            model.set_submodule(name, module.linear)
        elif isinstance(module, MixtureNorm):
            model.set_submodule(name, module.norm)
    return model
