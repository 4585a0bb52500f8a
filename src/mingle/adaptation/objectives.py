"""What is minimised: the distance of the student's predictions to the teacher's, or their own entropy.

Shapes: logits (N, C) of student and teacher; or (N, L, V), one prediction per token, with a mask (N, L) of
the tokens that count. Both distances have the same gradient. The mean is over samples, or over all
counted tokens and then times T² (Hinton et al. 2015), as the paper has it for text.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import log_softmax

Objective = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """``−1/N Σ softmax(teacher/T) · log softmax(student/T)``; times T² for tokens."""
    target = log_softmax(teacher / temperature, dim=-1).exp()
    return -_mean((target * log_softmax(student / temperature, dim=-1)).sum(-1), temperature, mask)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """``KL(teacher ‖ student)`` at temperature T, the mean; times T² for tokens; zero at a perfect match."""
    log_target = log_softmax(teacher / temperature, dim=-1)
    log_student = log_softmax(student / temperature, dim=-1)
    return _mean((log_target.exp() * (log_target - log_student)).sum(-1), temperature, mask)


def _mean(values: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return temperature**2 * values[mask.bool()].mean()


def prediction_entropy(logits: Tensor) -> Tensor:
    """``−1/N Σ p · log p`` with p = softmax(logits), without any label or teacher (arXiv 2310.02575)."""
    log_p = log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType({"kl": kl_divergence, "soft_ce": soft_cross_entropy})
