"""Random task vectors, experts, layer inputs and whole models of ViT-B/32's shapes, for `cost.py`."""

from collections.abc import Callable, Mapping

import plain
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mingle.adaptation import GateGroup
from mingle.backbones.clip import Clip
from mingle.layers import GateReduction, LowRankExpert, Placement, wrap
from mingle.subspace import NullSpaceProjector

RANK, TOKENS, BATCH, CLASSES = 64, 50, 16, 100
BLOCK = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "out": (768, 768), "fc1": (3072, 768)}
BLOCK |= {"fc2": (768, 3072)}
"""The Linears of one of the twelve blocks, (d_out, d_in)."""


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def delta(seed: int, shape: tuple[int, int]) -> Tensor:
    """A random task vector of full rank whose singular values fall as a power law."""
    inner = min(shape)
    scale = torch.arange(1, inner + 1) ** -0.6
    return 1e-3 * (draw(seed, shape[0], inner) * scale) @ draw(seed + 1, inner, shape[1]) / inner**0.5


def experts(shape: tuple[int, int], tasks: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(B, A) of random experts: orthonormal B, falling singular values in A."""
    found = []
    for task in range(tasks):
        q = torch.linalg.qr(draw(seed + 2 * task, shape[0], RANK)).Q
        scale = torch.arange(1, RANK + 1)[:, None] ** -0.6
        found.append((q, 0.02 * scale * draw(seed + 2 * task + 1, RANK, shape[1]) / shape[1] ** 0.5))
    return found


def layer_inputs(tokens: int, width: int) -> list[Tensor]:
    """Batches of tokens with a mean and a few strong directions, as a layer's inputs have."""
    strong = draw(11, 20, width) * torch.arange(20, 0, -1)[:, None] / 10
    rows = draw(12, tokens, width) + draw(13, tokens, 20) @ strong + draw(14, width)
    return list(rows.split(64 * TOKENS))


def tower(blocks: int) -> nn.Module:
    """A random ViT-B/32, the same every time."""
    torch.manual_seed(0)
    model: nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=blocks))
    return model.eval().requires_grad_(False)


def plain_tower(tasks: int, reduction: str, blocks: int) -> tuple[nn.Module, dict[str, plain.PlainMixture]]:
    """With the layers of `plain.py`."""
    model, layers = tower(blocks), dict[str, plain.PlainMixture]()
    for number, name in enumerate(n for group in Clip().groups(model, "full") for n in group.linears):
        linear = model.get_submodule(name)
        weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
        layer = layers[name] = plain.PlainMixture(weight, bias, reduction)
        layer.experts = experts((weight.shape[0], weight.shape[1]), tasks, 1000 * number)
        for task in range(tasks):
            row = 0.01 * draw(1000 * number + 500 + task, weight.shape[1])
            layer.w.append(row)
            layer.c.append(torch.tensor(0.1))
        model.set_submodule(name, layer)
    return model, layers


def our_tower(
    layers: Mapping[str, plain.PlainMixture],
    reduction: GateReduction,
    place: Placement | None = None,
    *,
    trainable: bool = False,
) -> tuple[nn.Module, list[GateGroup]]:
    """The same model with the layers of the library, and its gates by group."""
    place = place or Placement()
    model = tower(len(layers) // len(BLOCK)).to(place.dtype or torch.float32)
    groups = Clip().groups(model, "full")
    ours = wrap(model, groups, reduction)
    for name, layer in ours.items():
        other = layers[name]
        layer.extend(LowRankExpert(A, B) for B, A in other.experts)
        for task, (w, c) in enumerate(zip(other.w, other.c, strict=True)):
            newest = trainable and task == len(other.w) - 1
            layer.gate.append(w.detach(), c.detach(), trainable=newest)
    return place.place(model), [
        GateGroup(
            [ours[n].gate for n in group.linears],
            NullSpaceProjector(basis(ours[group.name].A.shape[1], len(other.w))),
            augmented=False,
        )
        for group in groups
    ]


def basis(width: int, tasks: int) -> Tensor:
    """What the earlier tasks protect, 3 columns each."""
    return torch.linalg.qr(draw(7, width, 3 * (tasks - 1))).Q


def logits(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Pixels to the logits of a random head."""
    head = torch.nn.functional.normalize(draw(5, CLASSES, 512), dim=-1)

    def run(pixels: Tensor) -> Tensor:
        features: Tensor = model(pixels).image_embeds
        return 100 * torch.nn.functional.normalize(features, dim=-1) @ head.mT

    return run
