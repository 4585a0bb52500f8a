"""The adaptation loop: Adam on the newest gate rows, kept inside the null space of earlier tasks.

Shapes: a group of gates that share their input has rows × d parameters, d = d_in, or d_in + 1 when the
bias is augmented (the last coordinate of a row is then the gate's bias).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

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

    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the newest rows."""
        return [p for gate in self.gates for p in (gate.new_weight, gate.new_bias) if p is not None]

    def rows(self) -> Tensor:
        """A copy of the protected coordinates of the newest rows: (rows, d)."""
        return self._stack([p.detach() for p in self.parameters()])

    def gradient(self) -> Tensor:
        """Their gradient: (rows, d)."""
        return self._stack([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()])

    def write(self, rows: Tensor) -> None:
        """Overwrites the protected coordinates of the newest rows."""
        self._unstack(rows, [p.data for p in self.parameters()])

    def write_gradient(self, rows: Tensor) -> None:
        """Overwrites the protected coordinates of their gradient."""
        self._unstack(rows, [p.grad for p in self.parameters()])

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        weights = torch.stack(list(tensors[::2]))
        return (
            torch.cat([weights, torch.stack(list(tensors[1::2]))[:, None]], dim=1)
            if self.augmented
            else weights
        )

    def _unstack(self, rows: Tensor, tensors: Sequence[Tensor | None]) -> None:
        for row, weight, bias in zip(rows, tensors[::2], tensors[1::2], strict=True):
            if weight is not None:
                weight.copy_(row[: len(weight)])
            if self.augmented and bias is not None:
                bias.copy_(row[-1])


def adapt(
    groups: Sequence[GateGroup],
    loss: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    lr: float,
    acts_on: ActsOn,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimises ``loss(batch indices)`` over the newest gate rows, one Adam step per batch.

    ``acts_on="gradient"``: the gradient is projected before Adam (released code). ``"update"``: Adam sees
    the raw gradient and its step is projected, ``Δw ← Δw − (Δw U) diag(λ) Uᵀ``; with γ = 0 every
    ``w·u`` then stays exactly where it was. Returns the loss of every step.
    Raises DivergedError when a loss or a gate is not finite.
    """
    parameters = [parameter for group in groups for parameter in group.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
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
