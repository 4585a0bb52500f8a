"""Experts as a model carries them: each step stores its own, the newest says what is left of all of them.

Tensors of a step, by file stem: ``experts``: ``<linear>.A`` (r, d_in), ``<linear>.B`` (d_out, r); under a
budget, and of ``made_it``, ``ranks``: ``<linear>`` (t,), how many leading ranks of every expert are in use,
and ``sharing``: ``<linear>`` (t, t), where experts were merged. Files of earlier steps stay as they are, so
that a prefix of the history is the model as it was.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mingle.layers import LowRankExpert

Tensors = Mapping[str, Mapping[str, Tensor]]


def served_expert(steps: Sequence[Tensors], index: int, linear: str) -> LowRankExpert:
    """A Linear's expert of one task, cut to the ranks that the newest of the steps leaves of it.

    The rows of A are ``σ_k v_kᵀ`` in falling order and the columns of B are u_k: the first ranks are the
    truncated SVD of that rank.
    """
    experts, ranks = steps[index]["experts"], steps[-1].get("ranks", {}).get(linear)
    kept = None if ranks is None else int(ranks[index])
    A, B = experts[f"{linear}.A"], experts[f"{linear}.B"]
    return LowRankExpert(A[:kept], B[:, :kept], experts.get(f"{linear}.bias"))


def sharing_of(steps: Sequence[Tensors], linear: str) -> Tensor | None:
    """M (t, t) with ``g ← g M``, where some expert stands for others; None: each has its own gate alone."""
    return steps[-1].get("sharing", {}).get(linear) if steps else None


def lone_expert(steps: Sequence[Tensors], index: int, linear: str) -> LowRankExpert:
    """What a Linear adds where the gate of one task is 1 and all others are 0: ``M_ji B_i A_i [+ δb_j]``.

    Expert i stands for that of task j, and ``M_jj = 1`` where it is its own.
    """
    own, sharing = served_expert(steps, index, linear), sharing_of(steps, linear)
    if sharing is None or sharing[index, index]:
        return own
    other = int(sharing[index].abs().argmax())
    found = served_expert(steps, other, linear)
    # Scaled in half precision it would be rounded twice.
    A = found.A.to(torch.promote_types(found.A.dtype, torch.float32))
    return LowRankExpert(float(sharing[index, other]) * A, found.B, own.bias)
