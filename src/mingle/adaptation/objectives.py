"""What is minimised: the distance of the student's predictions to the teacher's, or their own entropy.

Shapes: logits (N, C) of student and teacher; both distances have the same gradient.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import log_softmax

Objective = Callable[[Tensor, Tensor, float], Tensor]


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``−1/N Σ softmax(teacher/T) · log softmax(student/T)``, without a T² factor."""
    target = log_softmax(teacher / temperature, dim=-1).exp()
    return -(target * log_softmax(student / temperature, dim=-1)).sum(-1).mean()


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``KL(teacher ‖ student)`` at temperature T, mean over samples; zero at a perfect match."""
    log_target = log_softmax(teacher / temperature, dim=-1)
    log_student = log_softmax(student / temperature, dim=-1)
    return (log_target.exp() * (log_target - log_student)).sum(-1).mean()


def prediction_entropy(logits: Tensor) -> Tensor:
    """``−1/N Σ p · log p`` with p = softmax(logits), without any label or teacher (arXiv 2310.02575)."""
    log_p = log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType({"kl": kl_divergence, "soft_ce": soft_cross_entropy})
