"""Metrics of a continual merge, each derived from the accuracy matrix.

``matrix[t][i]`` (i ≤ t, counted from 0) is the accuracy on task i of the model after step t; T tasks.
"""

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> float:
    """ACC: ``1/T Σ_i a[T][i]``, the mean accuracy of the final model."""
    return sum(matrix[-1]) / len(matrix[-1])


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT: ``1/(T−1) Σ_{i<T} (a[T][i] − a[i][i])``; negative means forgetting. None for one task."""
    past = len(matrix) - 1
    if past == 0:
        return None
    return sum(matrix[-1][i] - matrix[i][i] for i in range(past)) / past


def h_score(merged: float, held_out: float) -> float:
    """``2 a b / (a + b)``: the harmonic mean of ACC on merged tasks and on tasks that were never merged."""
    return 2 * merged * held_out / (merged + held_out) if merged + held_out else 0.0


def forward_transfer(matrix: Matrix, individual: Sequence[float]) -> float | None:
    """FWT: ``1/(T−1) Σ_{t≥2} (a[t][t] − individual[t])``, as in the paper's appendix. None for one task."""
    later = range(1, len(matrix))
    if not later:
        return None
    return sum(matrix[t][t] - individual[t] for t in later) / len(later)


def normalised_accuracy(matrix: Matrix, individual: Sequence[float]) -> float | None:
    """``1/T Σ_i a[T][i] / individual[i]``. None where an individual model scores zero."""
    pairs = list(zip(matrix[-1], individual, strict=True))
    if not all(own > 0 for _, own in pairs):
        return None
    return sum(a / own for a, own in pairs) / len(pairs)
