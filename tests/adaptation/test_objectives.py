"""What is minimised: the value, the zero and the gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softmax

from mingle.adaptation import OBJECTIVES, kl_divergence, soft_cross_entropy


def logits(seed, samples=5, classes=4, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)


temperatures = st.sampled_from([0.5, 1.0, 2.0, 10.0])
seeds = st.integers(0, 2**31)


def plainly(student, teacher, temperature):
    """(KL, soft cross-entropy) number by number, mean over samples, no T² factor."""
    kl = cross = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        cross -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return kl / len(student), cross / len(student)


@given(seeds, temperatures, st.integers(1, 6), st.integers(1, 5))
def test_values_are_those_of_the_formulas(seed, temperature, samples, classes):
    student, teacher = logits(seed, samples, classes), logits(seed + 1, samples, classes)
    kl, cross = plainly(student, teacher, temperature)
    assert float(kl_divergence(student, teacher, temperature)) == pytest.approx(kl, abs=1e-12)
    assert float(soft_cross_entropy(student, teacher, temperature)) == pytest.approx(cross, abs=1e-12)


@given(seeds, temperatures, st.floats(-50, 50))
def test_kl_is_zero_at_a_match_and_positive_elsewhere(seed, temperature, shift):
    teacher = logits(seed)
    # A constant added to all logits of a sample is the same prediction.
    assert abs(float(kl_divergence(teacher + shift, teacher, temperature))) < 1e-12
    assert float(kl_divergence(logits(seed + 1), teacher, temperature)) > 1e-6


@given(seeds, temperatures)
def test_both_objectives_have_the_same_gradient(seed, temperature):
    teacher = logits(seed)
    gradients = []
    for objective in OBJECTIVES.values():
        student = logits(seed + 1).requires_grad_()
        objective(student, teacher, temperature).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, atol=1e-14, rtol=0)
    # (softmax(s/T) − softmax(t/T)) / (T N)
    difference = softmax(logits(seed + 1) / temperature, -1) - softmax(teacher / temperature, -1)
    torch.testing.assert_close(gradients[0], difference / (temperature * 5), atol=1e-14, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_confident_predictions_stay_finite(objective):
    student = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    value = objective(student, torch.tensor([[0.0, 1e4], [0.0, 1e4]]), 2.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(2500)
    assert torch.isfinite(student.grad).all()


@given(seeds, temperatures)
def test_tokens_that_count_are_averaged_times_the_squared_temperature(seed, temperature):
    """Sequences of 3, 1 and 2 tokens: the mean over those six, whatever stands in the padding."""
    student, teacher = logits(seed, 12).reshape(3, 4, 4), logits(seed + 1, 12).reshape(3, 4, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    kept = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    rows = [torch.stack([x[i, j] for i, j in kept]) for x in (student, teacher)]
    for objective, expected in zip(OBJECTIVES.values(), plainly(*rows, temperature), strict=True):
        found = objective(student, teacher, temperature, mask)
        assert float(found) == pytest.approx(temperature**2 * expected, abs=1e-10)
        spoiled = student.masked_fill(mask[..., None] == 0, 1e3)
        assert torch.equal(objective(spoiled, teacher, temperature, mask), found)
