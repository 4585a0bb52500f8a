"""Which samples are drawn, in which batches, and that one generator decides it all."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.adaptation import draw_batches, select_seeds
from mingle.errors import SeedsError

numbers = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@given(numbers, st.integers(1, 50), st.integers(1, 60))
def test_random_selection_takes_different_samples_of_the_pool(seed, pool, wanted):
    chosen = select_seeds("random", pool, wanted, generator(seed)).tolist()
    assert len(chosen) == min(pool, wanted)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(pool))


def test_random_selection_does_not_look_at_classes():
    classes = torch.arange(20) % 3
    blind = select_seeds("random", 20, 7, generator(1))
    assert torch.equal(select_seeds("random", 20, 7, generator(1), classes=classes), blind)


def test_random_selection_reaches_every_sample():
    counts = Counter(
        i for seed in range(200) for i in select_seeds("random", 10, 3, generator(seed)).tolist()
    )
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 2 * min(counts.values())


@given(numbers, st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 50))
@pytest.mark.parametrize("how", ["teacher", "label"])
def test_classes_take_turns(how, seed, labels, wanted):
    classes = torch.tensor(labels)
    chosen = select_seeds(how, len(labels), wanted, generator(seed), classes=classes).tolist()
    assert len(chosen) == len(set(chosen)) == min(wanted, len(labels))
    available = Counter(labels)
    # After any number of draws no class is more than one ahead of another that still has samples.
    for n in range(1, len(chosen) + 1):
        drawn = Counter(labels[i] for i in chosen[:n])
        for label, there in available.items():
            assert drawn[label] >= min(there, max(drawn.values()) - 1)


def test_samples_within_a_class_are_drawn_at_random():
    classes = torch.zeros(12, dtype=torch.int64)
    draws = {tuple(select_seeds("label", 12, 3, generator(s), classes=classes).tolist()) for s in range(20)}
    assert len(draws) > 10


@pytest.mark.parametrize("how", ["random", "teacher", "label"])
def test_same_generator_same_choice(how):
    classes = torch.arange(30) % 4
    one, two, other = (select_seeds(how, 30, 10, generator(s), classes=classes) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("how", ["random", "teacher", "label"])
def test_empty_pool_is_refused(how):
    with pytest.raises(SeedsError, match="the pool is empty"):
        select_seeds(how, 0, 3, generator(1), classes=torch.zeros(0, dtype=torch.int64))


def test_label_selection_without_labels_is_refused():
    with pytest.raises(SeedsError, match="'label' needs labels"):
        select_seeds("label", 5, 3, generator(1))


@pytest.mark.parametrize("number", [4, 6])
def test_one_label_per_sample_is_needed(number):
    with pytest.raises(SeedsError, match=f"one label per sample, 5, found {number}"):
        select_seeds("label", 5, 3, generator(1), classes=torch.zeros(number, dtype=torch.int64))


@given(numbers, st.integers(1, 30), st.integers(1, 40), st.integers(0, 25))
def test_every_pass_shows_a_sample_at_most_once(seed, samples, batch_size, steps):
    batches = draw_batches(samples, batch_size, steps, generator(seed))
    size = min(batch_size, samples)
    assert [len(batch) for batch in batches] == [size] * steps
    per_pass = samples // size
    for start in range(0, steps, per_pass):
        shown = torch.cat(batches[start : start + per_pass]).tolist()
        assert len(shown) == len(set(shown))
        assert set(shown) <= set(range(samples))
        if len(shown) == samples:
            assert sorted(shown) == list(range(samples))


def test_whole_passes_show_every_sample_and_are_reshuffled():
    batches = draw_batches(12, 4, 6, generator(1))
    first, second = torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_samples_that_do_not_fill_a_batch_get_their_turn_in_another_pass():
    shown = Counter(i for batch in draw_batches(10, 4, 100, generator(1)) for i in batch.tolist())
    assert set(shown) == set(range(10))


def test_batches_are_decided_by_the_generator():
    one, two, other = (torch.stack(draw_batches(9, 4, 5, generator(s))) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
