"""What the student's predictions are compared with.

Shapes: logits (N, C) of student and teacher; both objectives have the same gradient.
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


OBJECTIVES: Mapping[str, Objective] = MappingProxyType({"kl": kl_divergence, "soft_ce": soft_cross_entropy})
