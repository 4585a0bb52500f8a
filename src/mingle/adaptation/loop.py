"""The adaptation loop: Adam on the trainable gate rows, kept inside the null space of earlier tasks.

Shapes: a group of gates that share their input has rows × d parameters, d = d_in, or d_in + 1 when the
bias is augmented (the last coordinate of a row is then the gate's bias).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mingle.errors import DivergedError
from mingle.layers import Gate
from mingle.subspace import NullSpaceProjector

ActsOn = Literal["gradient", "update"]


@dataclass
class GateGroup:
    """The trainable rows of gates that read the same tensor, and the projector they share."""

    gates: Sequence[Gate]
    projector: NullSpaceProjector | None
    augmented: bool

    def parameters(self) -> list[Tensor]:
        """Weights and biases of the trainable rows, in turn."""
        return [tensor for gate in self.gates for tensor in gate.trainable()]

    def rows(self) -> Tensor:
        """A copy of the protected coordinates of the trainable rows: (rows, d)."""
        return self._stack([p.detach() for p in self.parameters()])

    def gradient(self) -> Tensor:
        """Their gradient: (rows, d)."""
        return self._stack([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()])

    def write(self, rows: Tensor) -> None:
        """Overwrites the protected coordinates of the trainable rows."""
        self._unstack(rows, [p.data for p in self.parameters()])

    def write_gradient(self, rows: Tensor) -> None:
        """Overwrites the protected coordinates of their gradient."""
        self._unstack(rows, [p.grad for p in self.parameters()])

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        weights = torch.cat([weight.reshape(-1, weight.shape[-1]) for weight in tensors[::2]])
        if not self.augmented:
            return weights
        return torch.cat([weights, torch.cat([bias.reshape(-1) for bias in tensors[1::2]])[:, None]], dim=1)

    def _unstack(self, rows: Tensor, tensors: Sequence[Tensor | None]) -> None:
        sizes = [p.numel() for p in self.parameters()[1::2]]
        for part, weight, bias in zip(torch.split(rows, sizes), tensors[::2], tensors[1::2], strict=True):
            if weight is not None:
                weight.copy_(part[:, : weight.shape[-1]].reshape(weight.shape))
            if self.augmented and bias is not None:
                bias.copy_(part[:, -1].reshape(bias.shape))


def adapt(
    groups: Sequence[GateGroup],
    loss: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    lr: float,
    acts_on: ActsOn,
    also: Sequence[Tensor] = (),
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimises ``loss(batch indices)`` over the trainable gate rows, one Adam step per batch.

    ``also`` holds further parameters that train with them, unprotected.

    ``acts_on="gradient"``: the gradient is projected before Adam (released code). ``"update"``: Adam sees
    the raw gradient and its step is projected, ``Δw ← Δw − (Δw U) diag(λ) Uᵀ``; with γ = 0 every
    ``w·u`` then stays exactly where it was. Returns the loss of every step.
    Raises DivergedError when a loss or a gate is not finite.
    """
    parameters = [parameter for group in groups for parameter in group.parameters()]
    optimizer = torch.optim.Adam([*parameters, *also], lr=lr)
    return minimise(
        optimizer, loss, batches, step=lambda: _projected_step(groups, optimizer, acts_on), report=report
    )


def minimise(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    step: Callable[[], object] | None = None,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimises ``loss(batch indices)`` over the optimizer's parameters; returns the loss of every step.

    One ``step`` per batch, by default the optimizer's own. Raises DivergedError when a loss or a trained
    value is not finite.
    """
    lr, losses = optimizer.param_groups[0]["lr"], list[float]()
    for done, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        value = loss(batch)
        if not torch.isfinite(value):
            raise DivergedError(
                f"adaptation: loss {value.item()} at step {done} of {len(batches)}, lr {lr:g}; "
                "use a smaller lr"
            )
        value.backward()  # type: ignore[no-untyped-call]
        (step or optimizer.step)()
        losses.append(float(value.detach()))
        if report:
            report(done, losses[-1])
    trained = (p for group in optimizer.param_groups for p in group["params"])
    if not all(torch.isfinite(parameter).all() for parameter in trained):
        raise DivergedError(
            f"adaptation: a trained value is not finite after {len(batches)} steps, lr {lr:g}; "
            "use a smaller lr"
        )
    return losses


@torch.no_grad()
def _projected_step(groups: Sequence[GateGroup], optimizer: torch.optim.Optimizer, acts_on: ActsOn) -> None:
    before: list[Tensor] = []
    for group in groups:
        if group.projector is None:
            continue
        gradient = group.gradient()
        group.projector.observe(gradient)
        if acts_on == "gradient":
            group.write_gradient(group.projector.project(gradient))
        else:
            before.append(group.rows())
    optimizer.step()
    if acts_on == "update":
        protected = [group for group in groups if group.projector is not None]
        for group, start in zip(protected, before, strict=True):
            if group.projector is not None:
                group.write(start + group.projector.project(group.rows() - start))
