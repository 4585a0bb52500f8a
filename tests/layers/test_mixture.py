"""The merged layer against the dense formula, and what may and may not carry a gradient."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear as plain_linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from mingle.layers import Gate, LowRankExpert, MixtureLinear, Selection

from .helpers import D_IN, D_OUT, draw, linear, pair

SHAPES = {"1-D": (D_IN,), "2-D": (4, D_IN), "3-D": (3, 7, D_IN), "4-D": (2, 3, 4, D_IN)}
EXACT = {"atol": 1e-12, "rtol": 1e-12}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["sample", "batch"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("delta_bias", [True, False])
def test_equals_the_dense_formula(shape, reduction, bias, delta_bias):
    mixture, dense = pair(bias=bias, delta_bias=delta_bias, reduction=reduction)
    x = draw(99, *shape)
    y = mixture(x)
    assert y.shape == (*shape[:-1], D_OUT)
    torch.testing.assert_close(y, dense(x), **EXACT)


@pytest.mark.parametrize("trainable", [True, False])
def test_trainable_row_computes_what_a_frozen_one_does(trainable):
    mixture, dense = pair(trainable=trainable)
    x = draw(99, 3, 4, D_IN)
    torch.testing.assert_close(mixture(x), dense(x), **EXACT)
    mixture.gate.freeze()
    torch.testing.assert_close(mixture(x), dense(x), **EXACT)


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
def test_empty_inputs_give_empty_outputs(sizes):
    mixture, _ = pair(delta_bias=True)
    y = mixture(torch.zeros(*sizes, D_IN, dtype=torch.float64))
    assert y.shape == (*sizes, D_OUT)


def test_experts_added_one_by_one_equal_experts_added_at_once():
    one, dense = pair(delta_bias=True)
    other = MixtureLinear(linear())
    for i in range(3):
        rank = one.task_of_rank == i
        other.extend([LowRankExpert(one.A[rank], one.B[:, rank], one.delta_bias[i])])
        other.gate.append(one.gate.weight[i], one.gate.bias[i])
        assert other.tasks == i + 1
    x = draw(99, 3, 4, D_IN)
    assert torch.equal(other(x), one(x))
    torch.testing.assert_close(other(x), dense(x), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_experts_it_is_the_linear_bit_for_bit(shape, dtype):
    plain = linear(dtype=dtype)
    x = draw(99, *shape).to(dtype)
    expected = plain(x)
    assert torch.equal(MixtureLinear(plain)(x), expected)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=9), st.booleans())
def test_a_sample_comes_out_the_same_whatever_shares_its_batch(batch, delta_bias):
    mixture, _ = pair(dtype=torch.float32, delta_bias=delta_bias)
    samples = draw(5, 12, 4, D_IN).float()
    together = mixture(samples[batch])
    alone = torch.cat([mixture(samples[[i]]) for i in batch])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_batch_reduction_does_depend_on_the_batch():
    mixture, _ = pair(reduction="batch")
    samples = draw(5, 4, 3, D_IN)
    assert (mixture(samples)[0] - mixture(samples[:1])[0]).abs().max() > 1e-3
    gates = mixture.gate(mixture.pool(samples))
    assert torch.equal(gates, gates[:1].expand_as(gates))


# --- gradients


@pytest.mark.parametrize("reduction", ["sample", "batch"])
@pytest.mark.parametrize("delta_bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_right(reduction, delta_bias, masked):
    mixture, _ = pair(reduction=reduction, delta_bias=delta_bias, trainable=True)
    mixture.pool.mask = torch.tensor([[1, 1, 0], [1, 0, 1]]) if masked else None
    x = draw(99, 2, 3, D_IN).requires_grad_()

    def forward(x, weight, bias):
        mixture.gate.new_weight, mixture.gate.new_bias = weight, bias
        return mixture(x)

    inputs = (x, mixture.gate.new_weight, mixture.gate.new_bias)
    assert torch.autograd.gradcheck(forward, inputs)


def test_only_the_newest_gate_row_is_trained():
    mixture, _ = pair(delta_bias=True, trainable=True)
    trained = {name for name, p in mixture.named_parameters() if p.requires_grad}
    assert trained == {"gate.new_weight", "gate.new_bias"}
    mixture(draw(99, 3, 4, D_IN)).sum().backward()
    gradients = {name for name, p in mixture.named_parameters() if p.grad is not None}
    assert gradients == trained
    assert not any(buffer.requires_grad for buffer in mixture.buffers())


class Products(TorchDispatchMode):
    """Shapes of all matrix products that are computed while it is on."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(part in str(function) for part in (".mm", "addmm", "bmm", "linear_backward")):
            self.shapes.update(tuple(t.shape) for t in (result,) if isinstance(t, torch.Tensor))
        return result


def test_no_gradient_of_a_weight_is_computed_on_the_way_to_the_input():
    mixture, _ = pair(trainable=True, ranks=(2, 4, 1))
    x = draw(99, 3, 4, D_IN).requires_grad_()
    y = mixture(x).sum()
    with Products() as products:
        y.backward()
    assert x.grad is not None
    assert products.shapes
    frozen = [mixture.linear.weight, mixture.A, mixture.B]
    of_weights = {shape for t in frozen for shape in (tuple(t.shape), tuple(t.mT.shape))}
    assert not products.shapes & of_weights
    # The same watch does see the gradient of a weight where there is one.
    weight = mixture.linear.weight.detach().clone().requires_grad_()
    z = plain_linear(x, weight).sum()
    with Products() as products:
        z.backward()
    assert products.shapes & of_weights


def test_gradient_reaches_the_input_through_gates_that_are_frozen():
    mixture, dense = pair()
    x = draw(99, 2, 3, D_IN).requires_grad_()
    mixture(x).square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    dense(reference).square().sum().backward()
    torch.testing.assert_close(x.grad, reference.grad, **EXACT)


# --- the gate's rows


def test_frozen_row_keeps_its_bits_and_another_can_follow():
    gate = Gate(3, dtype=torch.float64)
    first, second = draw(1, 3), draw(2, 3)
    gate.append(first, torch.tensor(0.5), trainable=True)
    assert len(gate.weight) == 0
    with torch.no_grad():
        gate.new_weight.add_(1.0)
    gate.append(second, torch.tensor(-0.5), trainable=True)
    assert torch.equal(gate.weight, (first + 1)[None])
    assert torch.equal(gate.new_weight.detach(), second)
    gate.freeze()
    gate.freeze()
    assert torch.equal(gate.weight, torch.stack([first + 1, second]))
    assert gate.bias.tolist() == [0.5, -0.5]
    assert list(gate.parameters()) == []


def test_rows_are_copies():
    gate = Gate(3, dtype=torch.float64)
    row = draw(1, 3)
    gate.append(row, torch.tensor(0.0), trainable=True)
    kept = row.clone()
    with torch.no_grad():
        gate.new_weight.zero_()
    assert torch.equal(row, kept)


def test_gates_may_be_negative_and_are_not_normalised():
    gate = Gate(2)
    gate.append(torch.tensor([1.0, 0.0]), torch.tensor(-3.0))
    gate.append(torch.tensor([0.0, 100.0]), torch.tensor(0.0))
    assert gate(torch.tensor([[1.0, 2.0]])).tolist() == [[-2.0, 200.0]]


# --- copies


def test_deepcopy_computes_the_same_and_shares_nothing():
    mixture, _ = pair(delta_bias=True, trainable=True)
    x = draw(99, 2, 3, D_IN)
    before = mixture(x)
    twin = copy.deepcopy(mixture)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(7.0)
    assert torch.equal(mixture(x), before)


def test_state_dict_holds_everything_that_the_output_depends_on():
    mixture, _ = pair(delta_bias=True)
    state = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    assert set(state) == {
        "linear.weight",
        "linear.bias",
        "A",
        "B",
        "delta_bias",
        "task_of_rank",
        "gate.weight",
        "gate.bias",
    }
    x = draw(99, 2, 3, D_IN)
    expected = mixture(x)
    other, _ = pair(delta_bias=True, seed=500)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)


def test_dtype_of_the_linear_is_the_dtype_of_everything():
    mixture = MixtureLinear(linear(dtype=torch.float32))
    mixture.extend([LowRankExpert(draw(1, 2, D_IN), draw(2, D_OUT, 2), draw(3, D_OUT))])
    mixture.gate.append(draw(4, D_IN), draw(5))
    assert {t.dtype for t in mixture.state_dict().values()} == {torch.float32, torch.int64}
    assert mixture(draw(6, 2, D_IN).float()).dtype == torch.float32


# --- gates of a batch as one weight


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_one_weight_for_a_batch_computes_what_the_branch_does(tokens, gradient, transposed):
    mixture, dense = pair(reduction="batch", delta_bias=True, ranks=(1, 1, 1), trainable=True)
    if transposed:
        conv = Conv1D(D_OUT, D_IN)
        conv.weight, conv.bias = nn.Parameter(mixture.linear.weight.mT), mixture.linear.bias
        mixture.linear = conv.requires_grad_(False)
    x = draw(99, 2, tokens, D_IN).requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        assert mixture._one_weight_is_cheaper(x, mixture.gate(mixture.pool(x))) == (
            tokens == 40 or (tokens == 2 and not gradient)
        )
        torch.testing.assert_close(mixture(x), dense(x), **EXACT)


def test_gradients_through_one_weight_are_right():
    mixture, dense = pair(reduction="batch", ranks=(6, 9, 6), trainable=True)
    x = draw(99, 2, 40, D_IN).requires_grad_()
    assert mixture._one_weight_is_cheaper(x, mixture.gate(mixture.pool(x)))
    found = torch.autograd.grad(mixture(x).square().sum(), [x, mixture.gate.new_weight])
    B, _, c, delta = dense.experts[-1]
    w = mixture.gate.new_weight.detach().clone().requires_grad_()
    dense.experts[-1] = (B, w, c, delta)
    expected = torch.autograd.grad(dense(x).square().sum(), [x, w])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


# --- the strongest experts only


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["sample", "batch"])
@pytest.mark.parametrize("used", [1, 2, 3, 9])
def test_strongest_experts_are_those_with_the_largest_gates(shape, reduction, used):
    mixture, _ = pair(delta_bias=True, reduction=reduction)
    x = draw(99, *shape)
    gates = mixture.gate(mixture.pool(x))
    order = gates.abs().argsort(dim=1, descending=True)
    expected = mixture.linear(x).detach().clone()
    rows = expected.reshape(len(gates), -1, D_OUT)
    for n, sample in enumerate(x.reshape(len(gates), -1, D_IN)):
        for task in order[n, :used].tolist():
            rank = mixture.task_of_rank == task
            delta = sample @ mixture.A[rank].mT @ mixture.B[:, rank].mT + mixture.delta_bias[task]
            rows[n] += gates[n, task].detach() * delta
    mixture.selection = Selection(used)
    torch.testing.assert_close(mixture(x), expected, **EXACT)


def test_strongest_experts_of_a_sample_do_not_depend_on_its_batch():
    mixture, _ = pair()
    mixture.selection = Selection(1)
    x = draw(99, 6, 4, D_IN)
    torch.testing.assert_close(mixture(x), torch.cat([mixture(x[[i]]) for i in range(6)]), **EXACT)
    assert mixture(x[:0]).shape == (0, 4, D_OUT)
