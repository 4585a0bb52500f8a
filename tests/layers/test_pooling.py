"""The mean input of a group: computed once, never out of date, blind to padding."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from mingle.layers import LinearGroup, PooledInput, wrap

from .helpers import D_IN, D_OUT, draw, pair

EXACT = {"atol": 1e-12, "rtol": 1e-12}


class Counting(PooledInput):
    """Counts how often the mean is really computed."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def mean(self, x):
        self.computed += 1
        return super().mean(x)


class Attention(nn.Module):
    """q, k and v read one tensor, out another."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D_IN, D_IN, dtype=torch.float64) for _ in range(4))

    def forward(self, x):
        return self.out(self.q(x) * self.k(x) + self.v(x))


def shared_group(trainable=False):
    pool = Counting()
    return pool, [pair(pool=pool, seed=100 * i, trainable=trainable) for i in range(3)]


def test_group_computes_its_mean_once_per_input():
    pool, layers = shared_group()
    for number in range(1, 4):
        x = draw(number, 2, 3, D_IN)
        for mixture, dense in layers:
            torch.testing.assert_close(mixture(x), dense(x), **EXACT)
        assert pool.computed == number


def test_wrap_shares_the_pool_within_a_group_and_not_between_groups():
    model = Attention()
    layers = wrap(model, [LinearGroup(("q", "k", "v")), LinearGroup(("out",))])
    assert layers["q"].pool is layers["k"].pool is layers["v"].pool
    assert layers["out"].pool is not layers["q"].pool


def test_in_place_change_is_noticed():
    pool, [(mixture, dense), *_] = shared_group()
    x = draw(1, 2, 3, D_IN)
    mixture(x)
    x.mul_(2)
    torch.testing.assert_close(mixture(x), dense(x), **EXACT)
    x[0, 0] = 5.0
    torch.testing.assert_close(mixture(x), dense(x), **EXACT)
    assert pool.computed == 3


def test_new_tensor_at_the_same_address_is_noticed():
    pool = Counting()
    x = draw(1, 2, 3, D_IN)
    address, first = x.data_ptr(), pool(x)
    storage = x.untyped_storage()
    del x
    gc.collect()
    again = torch.empty(0, dtype=torch.float64).set_(storage, 0, (2, 3, D_IN))
    assert again.data_ptr() == address
    again.copy_(draw(2, 2, 3, D_IN))
    again = again.detach()
    assert pool.computed == 1
    torch.testing.assert_close(pool(again), again.mean(1), **EXACT)
    assert (pool(again) - first).abs().max() > 1e-3
    assert pool.computed == 2


def test_views_of_one_storage_are_told_apart():
    pool = PooledInput()
    x = draw(1, 4, 3, D_IN)
    for part in (x[:2], x[2:], x.transpose(0, 1)):
        torch.testing.assert_close(pool(part), part.mean(1), **EXACT)


@pytest.mark.parametrize("leaf", [True, False])
def test_mean_under_no_grad_is_not_reused_with_grad_nor_the_other_way_round(leaf):
    pool, [(mixture, dense), *_] = shared_group(trainable=True)
    start = draw(1, 2, 3, D_IN).requires_grad_()
    x = start if leaf else start * 2
    with torch.no_grad():
        mixture(x)
    mixture(x).sum().backward(retain_graph=True)
    reference = start.detach().clone().requires_grad_()
    dense(reference if leaf else reference * 2).sum().backward()
    torch.testing.assert_close(start.grad, reference.grad, **EXACT)
    with torch.no_grad():
        assert not pool(x).requires_grad
    assert pool(x).requires_grad


@pytest.mark.parametrize("masked", [False, True])
def test_same_input_can_be_backpropagated_twice(masked):
    mixture, _ = pair()
    mixture.pool.mask = torch.tensor([[1, 1, 0], [1, 0, 1]]) if masked else None
    x = draw(1, 2, 3, D_IN).requires_grad_()
    gradients = []
    for _ in range(2):
        x.grad = None
        mixture(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, **EXACT)


def test_inference_mode_changes_nothing():
    mixture, dense = pair()
    with torch.inference_mode():
        x = draw(1, 2, 3, D_IN)
        torch.testing.assert_close(mixture(x), dense(x), **EXACT)
        x.mul_(3)
        torch.testing.assert_close(mixture(x), dense(x), **EXACT)


def test_input_is_not_kept_alive():
    pool = PooledInput()
    x = draw(1, 2, 3, D_IN)
    pool(x)
    assert pool._last is not None
    del x
    gc.collect()
    assert pool._last is None


def test_copies_of_a_model_keep_their_own_memory():
    model = Attention()
    wrap(model, [LinearGroup(("q", "k", "v"))])
    x = draw(1, 2, 3, D_IN)
    expected = model(x)
    twin = copy.deepcopy(model)
    assert twin.q.pool is twin.k.pool is twin.v.pool
    assert twin.q.pool is not model.q.pool
    assert torch.equal(twin(x), expected)


def test_model_in_use_can_be_copied_and_pickled():
    """The remembered mean, with its graph and its weak reference, stays behind."""
    mixture, dense = pair(trainable=True)
    x = draw(1, 2, 3, D_IN).requires_grad_() * 1
    mixture(x)
    assert mixture.pool._last is not None
    other = draw(2, 2, 3, D_IN)
    for twin in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        assert twin.pool._last is None
        torch.testing.assert_close(twin(other), dense(other), **EXACT)


# --- padding


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_padding_changes_neither_gates_nor_real_tokens(dtype):
    mixture, dense = pair(delta_bias=True)
    x = draw(1, 3, 4, D_IN)
    mixture.pool.mask = MASK.to(dtype)
    y = mixture(x)
    torch.testing.assert_close(mixture.gate(mixture.pool(x)), dense.gates(x, MASK), **EXACT)
    spoiled = x.masked_fill(~MASK.bool()[..., None], 1e3)
    real = MASK.bool()
    assert torch.equal(mixture.pool(spoiled), mixture.pool(x))
    torch.testing.assert_close(mixture(spoiled)[real], y[real], atol=0, rtol=0)
    # Cutting a sample to its real tokens gives the same: padding is as if it were not there.
    mixture.pool.mask = None
    for n, length in enumerate(MASK.sum(1).tolist()):
        torch.testing.assert_close(mixture(x[n : n + 1, :length])[0], y[n, :length], **EXACT)


def test_mask_that_changes_between_two_calls_is_noticed():
    pool = PooledInput()
    x = draw(1, 3, 4, D_IN)
    unmasked = pool(x)
    pool.mask = MASK
    masked = pool(x)
    assert (masked - unmasked).abs().max() > 1e-3
    pool.mask = 1 - MASK
    pool.mask[2] = 1
    assert (pool(x) - masked).abs().max() > 1e-3
    pool.mask = None
    assert torch.equal(pool(x), unmasked)


def test_sample_of_padding_alone_gives_finite_gates():
    pool = PooledInput()
    pool.mask = torch.tensor([[0, 0], [1, 1]])
    pooled = pool(draw(1, 2, 2, D_IN))
    assert torch.equal(pooled[0], torch.zeros(D_IN, dtype=torch.float64))


def test_inputs_without_tokens_are_their_own_mean():
    pool = PooledInput()
    x = draw(1, 3, D_IN)
    assert torch.equal(pool(x), x)
    assert torch.equal(pool(x[0]), x[:1])


def test_inputs_without_tokens_do_not_outlive_their_use():
    mixture, _ = pair()
    x = draw(1, 3, D_IN)
    y = mixture(x)
    assert y.shape == (3, D_OUT)
    del x
    gc.collect()
    assert mixture.pool._last is None


def test_rows_of_one_sample_share_its_mean():
    """Windows of a picture, one after the other: six rows of two samples."""
    pool = PooledInput()
    x = draw(1, 6, 4, D_IN)
    pool.samples = 2
    expected = x.reshape(2, 12, D_IN).mean(1)
    torch.testing.assert_close(pool(x), expected.repeat_interleave(3, 0), **EXACT)
    rows = draw(2, 2, 4, D_IN)
    torch.testing.assert_close(pool(rows), rows.mean(1), **EXACT)


# --- texts that are written with a cache


def test_what_the_first_pass_read_holds_for_the_next():
    """Each reader has its own mean: a norm and the Linear after it read different tensors."""
    pool, held = PooledInput(), {}
    prompt, normed = draw(1, 2, 4, D_IN), draw(2, 2, 4, D_IN)
    pool.held, pool.mask = held, MASK[:2]
    first = pool(prompt), pool(normed, "norm")
    assert not torch.equal(*first)
    for _ in range(2):
        pool.held, pool.mask = held, torch.zeros(2, 1)
        assert pool(draw(3, 2, 1, D_IN)) is first[0]
        assert pool(draw(4, 2, 1, D_IN), "norm") is first[1]
    pool.held = pool.mask = None
    assert torch.equal(pool(prompt), prompt.mean(1))


def test_copies_do_not_hold_what_the_model_holds():
    pool = PooledInput()
    pool.held = {}
    pool(draw(1, 2, 4, D_IN))
    assert copy.deepcopy(pool).held is None
    assert len(pool.held) == 1
