"""Gates read the prompt and nothing else: with a cache, without one, padded, in any batch."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from mingle.adaptation import second_moments
from mingle.backbones import take
from mingle.backbones.causal_lm import CausalLm
from mingle.errors import ConfigError
from mingle.layers import LowRankExpert, wrap, wrap_norms
from mingle.methods import Base

from .t5 import sentences
from .writers import KINDS, write_writer

BACKBONE = CausalLm()
TEXTS = ["good", *sentences(5, 5), "very bad plot it is not this film we you"]


def mixture(base):
    """The base with random experts, gates and deltas of LayerNorms at every site, each of its own."""
    model = base.model()
    groups = BACKBONE.groups(model, "full")
    layers = wrap(model, groups)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for layer in layers.values():
        out, into = len(layer.B), layer.A.shape[1]
        layer.extend([LowRankExpert(0.2 * draw(4, into), 0.2 * draw(out, 4), draw(out))])
        layer.gate.append(0.5 * draw(into), draw())
    for norm in wrap_norms(model, groups, layers).values():
        norm.extend([(0.2 * draw(32), 0.2 * draw(32))])
    return model.eval(), layers


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    root = write_writer(tmp_path_factory.mktemp(request.param), request.param, tasks=0)
    return Base(BACKBONE, BACKBONE.open(root / "base"), torch.float64)


@pytest.fixture(scope="module")
def model(base):
    return mixture(base)[0]


@pytest.fixture(scope="module")
def batch(base):
    return BACKBONE.prepare(TEXTS, base.checkpoint)


def generate(model, batch, **options):
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=8, pad_token_id=0, do_sample=False, **options)


@torch.no_grad()
def test_tokens_and_logits_with_a_cache_are_those_without(model, batch, monkeypatch):
    monkeypatch.setattr("mingle.backbones.causal_lm.MAX_NEW_TOKENS", 8)
    cached = generate(model, batch, output_logits=True, return_dict_in_generate=True, use_cache=True)
    plain = generate(model, batch, output_logits=True, return_dict_in_generate=True, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-5, rtol=0)
    start = batch["input_ids"].shape[1]
    written = BACKBONE.write(model, batch)
    assert torch.equal(written, cached.sequences[:, start:])
    assert len(set(map(tuple, written.tolist()))) > 1
    # What a student is trained on are the same logits.
    lesson = BACKBONE.dictation(model, batch, written, torch.ones_like(written))
    found = BACKBONE.logits(model, lesson, None).float()
    ends = (written == 0).long()
    real = ends.cumsum(1) == ends
    torch.testing.assert_close(found[real], torch.stack(cached.logits, 1)[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_it_is_the_prompt_that_makes_them_the_same(model, batch):
    """Guards the law above: a model whose gates read all tokens so far writes something else."""
    blind = copy.deepcopy(model)
    blind.__class__ = type(model).__mro__[2]
    expected = generate(model, batch, use_cache=False, output_logits=True, return_dict_in_generate=True)
    found = generate(blind, batch, use_cache=False, output_logits=True, return_dict_in_generate=True)
    assert (found.logits[0] - expected.logits[0]).abs().max() > 1e-3
    # A prompt without padding, and nothing written yet, is all there is to read.
    whole = take(batch, batch["attention_mask"].all(1))
    assert torch.equal(blind(**whole).logits, model(**whole).logits)
    longer = {name: torch.cat([t, torch.ones_like(t[:, :1])], 1) for name, t in batch.items()}
    all_read = model(**longer).logits[:, -1]
    first_read = model(**longer, prompt_mask=batch["attention_mask"]).logits[:, -1]
    assert (all_read - first_read).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_a_prompt_alone_and_in_a_padded_batch_are_the_same(base, model, batch, cached):
    together = generate(model, batch, use_cache=cached)[:, batch["input_ids"].shape[1] :]
    for i, text in enumerate(TEXTS):
        one = BACKBONE.prepare([text], base.checkpoint)
        alone = generate(model, one, use_cache=cached)[0, one["input_ids"].shape[1] :].tolist()
        assert together[i, : len(alone)].tolist() == alone
        assert not together[i, len(alone) :].any()


def test_beams_and_copies_of_the_model_write_the_same(model, batch):
    for options in ({"num_beams": 3}, {}):
        expected = generate(model, batch, **options)
        assert torch.equal(generate(model, batch, use_cache=False, **options), expected)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(generate(twin, batch, **options), expected)
            assert type(twin) is type(model)


@torch.no_grad()
def test_a_copied_cache_is_continued_from_its_prompt(model, batch):
    """Two texts that are written in turn do not get each other's gates."""
    first, second = (take(batch, torch.tensor([i])) for i in (6, 5))
    expected = generate(model, first)[:, first["input_ids"].shape[1] :]
    read, other = model(**first, use_cache=True), model(**second, use_cache=True)
    mask = torch.cat([first["attention_mask"], torch.ones(1, 1, dtype=torch.long)], 1)
    for cache in (copy.deepcopy(read.past_key_values), read.past_key_values):
        model(expected[:, :1], past_key_values=other.past_key_values, use_cache=True)
        place = first["attention_mask"].sum(1, keepdim=True)
        found = model(expected[:, :1], attention_mask=mask, position_ids=place, past_key_values=cache)
        assert found.logits[0, -1].argmax() == expected[0, 1]


def test_prompts_in_pieces_are_refused(base, model, batch):
    plain = base.model()
    cache = plain(**batch, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="read the whole prompt at once"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)
    cache = model(**{name: t[:, :3] for name, t in batch.items()}, use_cache=True).past_key_values
    for options in ({"past_key_values": cache}, {"prefill_chunk_size": 2}):
        with pytest.raises(ConfigError, match="read the whole prompt at once"):
            generate(model, batch, **options)
    with pytest.raises(ConfigError, match="use the default kind of cache"):
        model(batch["input_ids"], attention_mask=batch["attention_mask"][:, None, None].bool())


def test_pools_know_nothing_after_a_pass(base, batch):
    model, layers = mixture(base)
    generate(model, batch)
    assert all(layer.pool.mask is None and layer.pool.held is None for layer in layers.values())
    assert model.prompt_columns is None
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model, layers
        # Freed at once: a run builds one model after the other.
        assert gone() is None
    finally:
        gc.enable()


def test_second_moments_add_the_tokens_that_gates_read(base, batch):
    model, layers = mixture(base)
    written = torch.full((len(TEXTS), 3), 5)
    lesson = BACKBONE.dictation(model, batch, written, torch.ones_like(written))
    moments = second_moments(layers, [lambda: BACKBONE.logits(model, lesson, None)], augmented=False)
    assert {moment.count for moment in moments.values()} == {int(batch["attention_mask"].sum())}
