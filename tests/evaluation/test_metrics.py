"""Every metric against a table that was worked out by hand."""

import pytest

from mingle.evaluation import average_accuracy, backward_transfer, forward_transfer, normalised_accuracy
from mingle.evaluation.metrics import h_score

MATRIX = [
    [0.90],
    [0.80, 0.70],
    [0.75, 0.72, 0.60],
]
INDIVIDUAL = [0.95, 0.80, 0.75]


def test_average_is_that_of_the_last_row():
    # The mean of 0.75, 0.72 and 0.60.
    assert average_accuracy(MATRIX) == pytest.approx(0.69)
    assert average_accuracy(MATRIX[:1]) == pytest.approx(0.90)


def test_backward_transfer_is_the_mean_change_since_a_task_was_added():
    # ((0.75 − 0.90) + (0.72 − 0.70)) / 2
    assert backward_transfer(MATRIX) == pytest.approx(-0.065)
    # (0.80 − 0.90) / 1
    assert backward_transfer(MATRIX[:2]) == pytest.approx(-0.10)


def test_forward_transfer_compares_new_tasks_with_their_own_models():
    # ((0.70 − 0.80) + (0.60 − 0.75)) / 2
    assert forward_transfer(MATRIX, INDIVIDUAL) == pytest.approx(-0.125)


def test_normalised_accuracy_is_the_mean_of_ratios():
    # The mean of 0.75/0.95, 0.72/0.80 and 0.60/0.75.
    assert normalised_accuracy(MATRIX, INDIVIDUAL) == pytest.approx(0.8298245614)


def test_one_task_has_no_transfer():
    assert backward_transfer(MATRIX[:1]) is None
    assert forward_transfer(MATRIX[:1], INDIVIDUAL[:1]) is None
    assert normalised_accuracy(MATRIX[:1], INDIVIDUAL[:1]) == pytest.approx(0.90 / 0.95)


def test_h_score_is_the_harmonic_mean():
    assert h_score(0.75, 0.5) == pytest.approx(0.6)
    assert h_score(0.75, 0.0) == h_score(0.0, 0.0) == 0


def test_ratio_to_zero_is_not_a_number_to_report():
    assert normalised_accuracy(MATRIX, [0.95, 0.0, 0.75]) is None


def test_every_task_needs_its_individual_accuracy():
    with pytest.raises(ValueError, match="shorter"):
        normalised_accuracy(MATRIX, INDIVIDUAL[:2])
