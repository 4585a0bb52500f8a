"""Which earlier tasks a new one resembles: by what its experts read, and by what a router confuses.

Shapes: A (r, d_in) of a new expert; A_j of the expert of an earlier task j in the same Linear.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mingle.layers import LowRankExpert


def shared_energy(new: LowRankExpert, earlier: Sequence[LowRankExpert]) -> Tensor:
    """``[‖A V_jᵀ‖², ‖A‖² r_j / d_in, ‖A‖²]`` for every earlier expert (T, 3), in float64.

    V_j: an orthonormal basis of the rows of A_j. The first is the part of ‖B A‖² that reads what task j's
    expert reads, the second what it would be of an expert that has nothing to do with it.
    """
    own = new.A.double()
    total = own.square().sum()
    rows = []
    for expert in earlier:
        basis = torch.linalg.qr(expert.A[expert.A.any(dim=1)].double().mT).Q
        reads = (own @ basis).square().sum()
        rows.append(torch.stack([reads, total * basis.shape[1] / own.shape[1], total]))
    return torch.stack(rows) if rows else own.new_zeros(0, 3)


def overlap_report(tasks: Sequence[str], energies: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """By earlier task: ``shared`` and ``chance``, the first energies of all Linears as shares of the last."""
    sums = torch.stack(list(energies)).sum(0)
    shares = (sums[:, :2] / sums[:, 2:].clamp_min(torch.finfo(sums.dtype).tiny)).tolist()
    return {
        task: {"shared": shared, "chance": chance}
        for task, (shared, chance) in zip(tasks, shares, strict=True)
    }


def confused_with(gates_on_seeds: Mapping[str, float], task: str, least: float) -> list[str]:
    """Other tasks whose gates have at least that mean on the seeds of ``task``, the largest first."""
    found = [other for other, gate in gates_on_seeds.items() if other != task and gate >= least]
    return sorted(found, key=lambda other: -gates_on_seeds[other])
