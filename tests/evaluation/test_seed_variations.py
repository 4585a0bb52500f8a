"""Seed pools that were varied on purpose: how many, of which classes, from where, and the same every time."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mingle.errors import ConfigError, SeedsError, UnknownNameError
from mingle.evaluation import CORRUPTIONS, VARIATIONS, Elsewhere, corrupt, vary

POOL = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
OTHER = torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
CLASSES = torch.arange(40) % 4
AMOUNTS = {"unbalanced": 10, "wrong": 0.5} | dict.fromkeys(CORRUPTIONS, 3)
AUGMENTED = ("crops", "flips", "colour", "mixup")


def varied(kind, amount=None, pool=POOL, other=OTHER, seed="42/task"):
    amount = AMOUNTS.get(kind, 6) if amount is None else amount
    return vary(pool, kind, amount, random.Random(seed), Elsewhere(lambda: other, lambda: CLASSES))


def rows(samples):
    """What can be looked for: the bytes of every sample."""
    return [np.asarray(sample).tobytes() for sample in samples]


@pytest.mark.parametrize("kind", VARIATIONS)
def test_the_same_draws_give_the_same_pool_and_leave_the_old_alone(kind):
    before = POOL.clone()
    assert torch.equal(varied(kind), varied(kind))
    assert torch.equal(before, POOL)
    if kind not in CORRUPTIONS:
        assert rows(varied(kind)) != rows(varied(kind, seed="43/task"))


def test_few_are_of_the_pool_and_no_more_than_there_are():
    few = rows(varied("few"))
    assert len(set(few)) == 6
    assert set(few) <= set(rows(POOL))
    assert len(varied("few", 1000)) == 40


@pytest.mark.parametrize("kind", AUGMENTED)
def test_copies_stand_beside_the_seeds_of_few(kind):
    found = varied(kind)
    assert (found.shape, found.dtype) == ((30, 3, 16, 16), torch.uint8)
    assert torch.equal(found[:6], varied("few"))
    assert not set(rows(found[6:])) & set(rows(found[:6]))


def test_what_the_copies_are():
    seeds, flipped = varied("flips").split([6, 24])
    for place, copy in enumerate(flipped):
        seed = seeds[place % 6]
        assert any(torch.equal(copy, seed.flip(dims)) for dims in ((2,), (1,), (1, 2)))
    grey = torch.full((6, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.equal(varied("crops", pool=grey), torch.cat([grey] * 5))
    assert len({int(image[0, 0, 0]) for image in varied("colour", pool=grey)[6:]}) > 3
    black_and_white = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 255.0)]).to(torch.uint8)
    mixed = varied("mixup", 2, pool=black_and_white)[2:].flatten(1)
    assert torch.equal(mixed.amin(1), mixed.amax(1))
    assert set(mixed[:, 0].tolist()) - {0, 255}


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.1, 4), (0.5, 20), (1, 40)])
def test_a_share_is_of_the_other_task(share, count):
    found = rows(varied("wrong", share))
    assert sum(row in set(rows(OTHER)) for row in found) == count
    assert sum(row in set(rows(POOL)) for row in found) == 40 - count
    assert len(found) == 40


def test_wrong_seeds_of_another_size_or_of_words():
    larger = OTHER.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    sizes = [image.size for image in varied("wrong", 0.25, other=larger)]
    assert sorted(set(sizes)) == [(16, 16), (32, 32)]
    assert sizes.count((32, 32)) == 10
    texts = varied("wrong", 0.5, pool=["a"] * 8, other=["b", "c"])
    assert sorted(texts) == ["a"] * 4 + ["b"] * 2 + ["c"] * 2


def test_a_long_tail_of_classes():
    kept = [rows(POOL).index(row) for row in rows(varied("unbalanced", 10))]
    sizes = torch.bincount(CLASSES[kept]).sort(descending=True).values
    assert sizes.tolist() == [10, 5, 2, 1]  # 10 · 10^(−r/3)
    assert len(varied("unbalanced", 1)) == 40


def test_corrupted_at_a_severity():
    assert torch.equal(varied("contrast", 5), corrupt(POOL, "contrast", 5))


def test_pictures_in_a_list_stay_one():
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in POOL]
    assert rows(varied("mixup", pool=pictures)) == [
        image.permute(1, 2, 0).numpy().tobytes() for image in varied("mixup")
    ]


@pytest.mark.parametrize("kind", [*AUGMENTED, "contrast"])
def test_text_has_no_pictures_to_change(kind):
    with pytest.raises(SeedsError, match=f"{kind}: expected images, found text"):
        varied(kind, pool=["some", "words"])


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("wrong", 1.5),
        ("wrong", -0.1),
        ("few", 0),
        ("few", 2.5),
        ("few", float("inf")),
        ("unbalanced", 0.5),
        ("contrast", 6),
    ],
)
def test_an_amount_that_cannot_be_is_refused(kind, amount):
    with pytest.raises(ConfigError, match=f"{kind}: expected .* from .* found {amount}"):
        varied(kind, amount)


def test_seeds_of_a_task_that_has_none_are_refused():
    with pytest.raises(SeedsError, match="the other task has no seeds"):
        varied("wrong", other=OTHER[:0])


def test_an_unknown_kind_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean crops"):
        varied("crop")
