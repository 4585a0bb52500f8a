"""Only experts whose gate matters: against plain loops, and one grouping for all layers that share gates."""

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.layers import Selection
from mingle.layers.router import SharedGate

from .. import naive
from .helpers import D_IN, draw, pair

EXACT = {"atol": 1e-11, "rtol": 1e-11}
LIMITS = {
    "strongest": st.sampled_from([None, 1, 2, 3, 9]),
    "threshold": st.sampled_from([0.0, 0.3, 1.0, 2.5, 50.0]),
}


def sparse_pair(strongest, threshold, **changes):
    """A mixture, and the dense formula with the gates of plain loops."""
    mixture, dense = pair(**changes)
    mixture.selection = Selection(strongest, threshold)
    every = dense.gates

    def kept(x, mask):
        return torch.stack([naive.kept_gates(row, strongest, threshold) for row in every(x, mask)])

    dense.gates = kept
    return mixture, dense


@given(
    **LIMITS,
    samples=st.integers(0, 5),
    tokens=st.integers(1, 3),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    reduction=st.sampled_from(["sample", "batch"]),
    delta_bias=st.booleans(),
    seed=st.integers(0, 10**4),
)
def test_every_sample_is_the_sum_over_the_experts_it_keeps(
    strongest, threshold, samples, tokens, ranks, reduction, delta_bias, seed
):
    mixture, dense = sparse_pair(
        strongest, threshold, ranks=ranks, reduction=reduction, delta_bias=delta_bias, seed=seed
    )
    x = draw(seed + 999, samples, tokens, D_IN)
    expected = dense(x) if samples else x.new_zeros(0, tokens, len(mixture.B))
    torch.testing.assert_close(mixture(x), expected, **EXACT)


@given(**LIMITS, order=st.permutations(range(6)), seed=st.integers(0, 10**4))
def test_no_sample_depends_on_its_batch_or_its_place_there(strongest, threshold, order, seed):
    mixture, _ = sparse_pair(strongest, threshold, seed=seed)
    x = draw(seed + 999, 6, 4, D_IN)
    together = mixture(x)
    torch.testing.assert_close(mixture(x[order]), together[order], **EXACT)
    torch.testing.assert_close(torch.cat([mixture(x[[i]]) for i in range(6)]), together, **EXACT)


@pytest.mark.parametrize("selection", [Selection(), Selection(3), Selection(threshold=0.0)])
def test_keeping_all_experts_keeps_the_bits(selection):
    mixture, _ = pair(delta_bias=True)
    x = draw(99, 5, 4, D_IN)
    expected = mixture(x)
    mixture.selection = selection
    assert torch.equal(mixture(x), expected)


def test_the_limit_itself_is_kept_and_a_sample_may_keep_nothing():
    gates = torch.tensor([[0.5, -0.25, 0.2], [0.1, 0.0, -0.1]])
    found = Selection(threshold=0.25)(gates)
    assert found.gates.tolist() == [[0.5, -0.25, 0], [0, 0, 0]]
    assert [(used.task, used.samples.tolist()) for used in found.experts] == [(0, [0]), (1, [0])]
    both = Selection(1, 0.15).kept(gates)
    assert both.tolist() == [[0.5, 0, 0], [0, 0, 0]]


def test_a_gate_that_is_not_a_number_is_not_hidden():
    mixture, _ = pair()
    mixture.selection = Selection(threshold=10.0)
    x = draw(99, 3, 2, D_IN)
    x[1, 0, 0] = torch.nan
    assert mixture(x).isnan().flatten(1).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_gradients_are_those_of_the_sum(threshold):
    mixture, dense = sparse_pair(None, threshold, trainable=True)
    x = draw(99, 4, 3, D_IN).requires_grad_()
    found = torch.autograd.grad(mixture(x).square().sum(), [x, mixture.gate.new_weight])
    assert mixture.selection._last is None
    B, _, c, delta = dense.experts[-1]
    w = mixture.gate.new_weight.detach().clone().requires_grad_()
    dense.experts[-1] = (B, w, c, delta)
    expected = torch.autograd.grad(dense(x).square().sum(), [x, w])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


# --- one grouping for all layers


class Counting(Selection):
    """Counts how often samples are really grouped."""

    grouped = 0

    def kept(self, gates):
        self.grouped += 1
        return super().kept(gates)


def sharing(values):
    """Three layers under one gate, and their selection."""
    layers, gate, selection = [pair(seed=100 * i)[0] for i in range(3)], SharedGate(), Counting(1)
    gate.values = values
    for layer in layers:
        layer.gate, layer.selection = gate, selection
    return layers, gate, selection


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_layers_that_share_gates_share_the_grouping(mode):
    with mode():
        layers, gate, selection = sharing(draw(1, 4, 3))
        x = draw(99, 4, 2, D_IN)
        for number in range(1, 4):
            found = [layer(x) for layer in layers]
            assert selection.grouped == number
            for layer, y in zip(layers, found, strict=True):
                fresh = copy.copy(layer)
                fresh.selection = Selection(1)
                assert torch.equal(fresh(x), y)
            # Other values in another tensor, which may come to lie where the old one was.
            gate.values = draw(number + 1, 4, 3)


def test_gates_that_changed_in_place_are_grouped_again():
    layers, gate, selection = sharing(draw(1, 4, 3))
    x = draw(99, 4, 2, D_IN)
    before = layers[0](x)
    gate.values.copy_(gate.values.roll(1, 1))
    assert not torch.allclose(layers[0](x), before)
    assert selection.grouped == 2


def test_the_grouping_lives_as_long_as_its_gates_and_in_no_copy():
    layers, gate, selection = sharing(draw(1, 4, 3))
    layers[0](draw(99, 4, 2, D_IN))
    assert selection._last is not None
    for twin in (copy.deepcopy(selection), pickle.loads(pickle.dumps(selection))):
        assert (twin.strongest, twin.threshold, twin._last) == (1, 0.0, None)
    gate.values = None
    gc.collect()
    assert selection._last is None


def test_a_copied_model_has_one_selection_of_its_own():
    layers, _, selection = sharing(draw(1, 4, 3))
    twins = copy.deepcopy(torch.nn.ModuleList(layers))
    assert len({id(twin.selection) for twin in twins}) == 1
    assert twins[0].selection is not selection
