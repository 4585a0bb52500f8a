"""Gates in closed form: the statistics, what routers read in every family, and the merged model."""

import copy
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_hook

from mingle.adaptation import RouterSystem, router_statistics
from mingle.backbones import BACKBONES, split
from mingle.backbones.clip import Clip
from mingle.errors import ConfigError, DivergedError, SeedsError, translated
from mingle.evaluation.final import parameters
from mingle.layers import Decision, PooledInput, Reading, mixtures
from mingle.methods import METHODS, Arrival, Base, SeedPool

from .. import naive
from ..backbones.families import FAMILIES
from ..conftest import tensors_of
from .conftest import TASKS

READS = ("trunk", "stem", "block", "layer")
# Text that is written has its own way through a model; every way of reading pictures is another trunk.
KINDS = (
    "clip",
    "open_clip",
    "vit",
    "swin",
    "beit",
    "bert",
    "deberta-v2",
    "distilbert",
    "t5",
    "llama",
    "gpt2",
)


def build(**changes):
    return METHODS.get("mingle").with_preset("default", {"rank": 4} | changes)


# --- statistics


def samples(seed, sizes, width):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(size, width - 1, generator=generator, dtype=torch.float64) + i
        for i, size in enumerate(sizes)
    ]
    return [torch.cat([part, part.new_ones(len(part), 1)], dim=1) for part in parts]


def joint(parts, ridge):
    """Weighted ridge regression on indicator targets over all samples at once, by its normal equations."""
    X = torch.cat(parts)
    owner = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    Y = torch.nn.functional.one_hot(owner, len(parts)).double()
    weight = torch.cat([torch.full((len(part),), 1 / len(part), dtype=torch.float64) for part in parts])
    R = X.mT @ (weight[:, None] * X)
    return torch.linalg.solve(
        R + ridge * R.diagonal().mean() * torch.eye(len(R), dtype=torch.float64), X.mT @ (weight[:, None] * Y)
    ).mT


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    width=st.integers(2, 12),
    ridge=st.sampled_from([1e-4, 1e-3, 1e-1]),
)
def test_one_task_after_the_other_is_all_at_once(seed, sizes, width, ridge):
    parts = samples(seed, sizes, width)
    kept = [router_statistics(part) for part in parts]
    for done in range(1, len(parts) + 1):
        torch.testing.assert_close(
            RouterSystem(kept[:done], ridge).weight(), joint(parts[:done], ridge), atol=1e-8, rtol=1e-8
        )


def test_a_capped_moment_keeps_its_largest_directions():
    (part,) = samples(3, [40], 9)
    whole, capped = router_statistics(part), router_statistics(part, 4)
    assert whole.factor.shape == (9, 9)
    assert capped.factor.shape == (4, 9)
    moment = part.mT @ part / 40
    torch.testing.assert_close(whole.factor.mT @ whole.factor, moment)
    values = torch.linalg.eigvalsh(moment).flip(0)
    left = torch.linalg.eigvalsh(capped.factor.mT @ capped.factor).flip(0)
    torch.testing.assert_close(left[:4], values[:4])
    assert left[4:].abs().max() < 1e-12
    assert torch.equal(capped.mean, whole.mean)


def test_statistics_hold_no_sample():
    (part,) = samples(5, [6], 30)
    rows = router_statistics(part).factor * 6**0.5
    assert torch.cdist(rows, part).min() > 0.5


def test_seeds_that_say_nothing_give_gates_of_nothing():
    empty = router_statistics(torch.zeros(5, 4))
    assert torch.equal(RouterSystem([empty, empty], 1e-3).weight(), torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(DivergedError, match="not finite"):
        RouterSystem(
            [router_statistics(torch.ones(2, 4)), empty._replace(factor=torch.full((1, 4), torch.inf))], 1e-3
        )


# --- reading and deciding


@pytest.mark.parametrize("features", ["mean", "mean+std", "mean+std+first"])
def test_reading_leaves_padding_out(features):
    generator = torch.Generator().manual_seed(1)
    hidden = [3 * torch.randn(3, 5, 4, generator=generator) + 1 for _ in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])
    pool = PooledInput()
    pool.mask = mask
    found = Reading(features)(hidden, pool)
    for number, row in enumerate(found):
        torch.testing.assert_close(
            row, read([x[number][mask[number].bool()] for x in hidden], features), atol=1e-4, rtol=1e-4
        )


def read(tokens, features="mean+std+first"):
    """One sample's x̃ of its tokens (S, d) at every depth, by plain formulas."""
    parts = []
    for own in tokens:
        alike = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True, correction=0)
        parts += [alike.mean(0), alike.std(0, correction=0), alike[0]][: 1 + features.count("+")]
    return torch.cat([*parts, torch.ones(1)])


def test_forms():
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.2, 0.7]])
    assert torch.equal(Decision("raw")(scores), scores)
    torch.testing.assert_close(Decision("softmax", 0.5)(scores), (scores / 0.5).softmax(1))
    assert torch.equal(Decision("top_k", 0.5, 1)(scores), torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    two = Decision("top_k", 0.5, 2)(scores[:1])
    torch.testing.assert_close(two, torch.tensor([[0.0, -torch.inf, 0]]).add(scores[:1] / 0.5).softmax(1))
    assert torch.equal(Decision("top_k", 0.5, 9)(scores), Decision("softmax", 0.5)(scores))


# --- the merged model


@pytest.mark.parametrize("reads", READS)
def test_the_gates_are_the_solution_on_what_was_read(merge, pool, reads):
    """By plain formulas: of a trunk and a stem, the hidden states of the frozen base."""
    method = build(router_reads=reads, router_depths=(1, 2) if reads == "trunk" else None, seeds_in_all=40)
    state = merge(method)
    newest = state.steps[-1].tensors["router"]
    places = [name.removesuffix(".weight") for name in newest if name.endswith(".weight")]
    assert len(places) == {"trunk": 1, "stem": 1, "block": 2, "layer": 8}[reads]
    if reads in ("trunk", "stem"):
        depths = {"trunk": 2, "stem": 1}[reads]
        hidden = state.base.model()(**pool.batch, output_hidden_states=True).hidden_states[1 : depths + 1]
        x = torch.stack([read(tokens) for tokens in zip(*hidden, strict=True)]).double()
        # All tasks have the same seeds here, and so the same gates.
        expected = joint([x, x, x], 1e-2)
        torch.testing.assert_close(newest[f"{places[0]}.weight"], expected, atol=1e-4, rtol=1e-4)
        model = method.model(state)
        model(**pool.batch)
        gates = next(iter(dict(mixtures(model)).values())).gate.values
        torch.testing.assert_close(gates, (x @ expected.mT / 0.05).softmax(1).float(), atol=1e-4, rtol=1e-4)


@contextmanager
def blocks_that_run(base):
    """The blocks of the base's class that finish while this is open."""
    ran, kind = [], type(base.model().get_submodule("vision_model.encoder.layers.0"))
    with register_module_forward_hook(lambda m, *_: ran.append(m) if isinstance(m, kind) else None):
        yield ran


@pytest.mark.parametrize("reads", ["trunk", "stem"])
def test_reading_seeds_runs_no_more_than_what_is_read(base, arrive, reads):
    """Nothing of the merged model, and of the base the blocks that are read, once."""
    method = build(router_reads=reads, router_depths=(1,), seeds_in_all=40)
    with blocks_that_run(base) as ran:
        # Without a head the seeds are not shown to the checkpoint.
        method.update(method.init(base), arrive(TASKS[0], head=None))
    assert len(ran) == 1


@pytest.mark.parametrize(("reads", "runs"), [("trunk", 3), ("stem", 2)])
def test_a_stem_has_no_experts_and_is_not_computed_twice(merge, base, pool, reads, runs):
    method = build(router_reads=reads, router_depths=(1,), vectors="gated")
    state = merge(method)
    first = [name for name in state.steps[0].tensors["experts"] if ".layers.0." in name]
    assert (first == []) == (reads == "stem")
    model = method.model(state)
    with blocks_that_run(base) as ran:
        model(**pool.batch)
    assert len(ran) == runs


@pytest.mark.parametrize("reads", READS)
def test_every_step_keeps_its_own_statistics_and_all_gates(merge, reads):
    method = build(router_reads=reads)
    long, short = merge(method), merge(method, TASKS[:2])
    for step, same in zip(long.steps, short.steps, strict=False):
        for name, tensor in same.tensors["router"].items():
            assert torch.equal(tensor, step.tensors["router"][name])
            assert tensor.dtype == torch.float64
    for count, step in enumerate(long.steps, start=1):
        rows = {len(t) for name, t in step.tensors["router"].items() if name.endswith(".weight")}
        assert rows == {count}
        report = step.report["router"]
        assert report["bytes"] == sum(t.nbytes for t in step.tensors["router"].values())
        assert list(report["gates_on_seeds"]) == list(TASKS[:count])
        assert sum(report["gates_on_seeds"].values()) == pytest.approx(1)


def test_a_capped_rank_bounds_what_a_task_keeps(merge):
    capped = merge(build(router_rank=3)).steps[0].tensors["router"]
    assert {len(t) for name, t in capped.items() if name.endswith(".factor")} == {3}


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("name", KINDS)
def test_all_families(tmp_path, name, reads):
    """Samples do not see each other, a copy is independent, and undoing is taking the last step off."""
    family = FAMILIES[name]
    family.write(tmp_path)
    backbone = BACKBONES.get(family.backbone)()
    base = Base(backbone, backbone.open(tmp_path / "base"))
    batch = backbone.prepare(family.samples(0, 6), base.checkpoint)
    method = build(router_reads=reads, seeds_in_all=6)
    state = method.init(base)
    for number, task in enumerate(("task1", "task2"), start=1):
        opened = backbone.open(tmp_path / task, base.checkpoint)
        head = backbone.head(opened, base=base.checkpoint)
        pool = SeedPool(backbone.prepare(family.samples(number, 6), base.checkpoint))
        state = method.update(state, Arrival(task, opened, head, pool, seed=1))
    model = method.model(state)
    found = backbone.features(model, batch)
    # Another model of the same base shares modules with nothing of this one.
    twin = copy.deepcopy(model)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    again = backbone.features(twin, batch)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-5)
    alone = [backbone.features(twin, {key: t[i : i + 1] for key, t in batch.items()}) for i in range(6)]
    wide = max(part.shape[1] for part in alone)
    joined = torch.cat([torch.nn.functional.pad(part, (0, wide - part.shape[1])) for part in alone])
    torch.testing.assert_close(joined[:, : found.shape[1]], found[:, :wide], atol=1e-4, rtol=1e-4)
    newest = state.steps[-1].tensors["router"]
    # The first token that a T5 decoder reads is the same for all texts.
    same = [t[0].allclose(t[1]) for key, t in newest.items() if key.endswith(".weight")]
    assert sum(same) < (len(same) if name == "t5" else 1)
    # The tiny T5 writes nothing, whatever is merged.
    assert name == "t5" or not torch.equal(found, backbone.features(base.model(), batch))


@pytest.mark.parametrize("limits", [{"strongest": 1}, {"gate_threshold": 0.3}])
@pytest.mark.parametrize("reads", READS)
def test_a_prediction_uses_the_experts_whose_gate_matters(base, arrive, pool, reads, limits):
    """By the model with all experts, its gates zeroed by hand; nothing that is stored depends on it."""
    sparse, plain = (build(router_reads=reads, seeds_in_all=13, **more) for more in (limits, {}))
    one, two = sparse.init(base), plain.init(base)
    for number, task in enumerate(TASKS):
        seeds = SeedPool({key: part[number::3][:13] for key, part in pool.batch.items()})
        one, two = (m.update(s, arrive(task, seeds=seeds)) for m, s in ((sparse, one), (plain, two)))
    stored = tensors_of(two)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in tensors_of(one).items())
    dense = plain.model(two)
    every = base.backbone.features(dense, pool.batch)
    for gate in {layer.gate for _, layer in mixtures(dense)}:
        gate.of = lambda x, at, of=gate.of: torch.stack(
            [
                naive.kept_gates(row, limits.get("strongest"), limits.get("gate_threshold", 0))
                for row in of(x, at)
            ]
        )
    expected = base.backbone.features(dense, pool.batch)
    assert (expected - every).abs().max() > 1e-4
    found = base.backbone.features(sparse.model(one), pool.batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "limits", [{"strongest": 0}, {"gate_threshold": -1}, {"gate_threshold": float("nan")}]
)
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(ConfigError, match=f"option '{next(iter(limits))}'"):
        build(**limits)


@pytest.mark.parametrize("reads", READS)
def test_routers_are_counted_once(merge, base, reads):
    method = build(router_reads=reads)
    state = merge(method)
    found = parameters(method.model(state))["parameters"]
    kept = [t.numel() for step in state.steps for t in step.tensors["experts"].values()]
    rows = [t.numel() for name, t in state.steps[-1].tensors["router"].items() if name.endswith(".weight")]
    assert found == parameters(base.model())["parameters"] + sum(kept) + sum(rows)


def test_the_same_seeds_give_the_same_bits(merge):
    one, two = (tensors_of(merge(build())) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_refining_moves_the_newest_rows_only_and_lasts(merge):
    """A row that distillation moved stays moved when all are solved for anew."""
    plain = merge(build())
    state = merge(build(refine=8, lr=0.05, gamma=0.0, similar=1.1))
    (place,) = (key.removesuffix(".refined") for key in state.steps[0].tensors["router"] if "refined" in key)
    moved = torch.stack([step.tensors["router"][f"{place}.refined"] for step in state.steps])
    # The softmax over the first task alone is 1, whatever its row is.
    assert moved[0].norm() < 1e-6
    assert moved[1:].norm(dim=1).min() > 1e-3
    for count, (step, bare) in enumerate(zip(state.steps, plain.steps, strict=True), start=1):
        expected = bare.tensors["router"][f"{place}.weight"] + moved[:count]
        torch.testing.assert_close(step.tensors["router"][f"{place}.weight"], expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(
            step.tensors["router"][f"{place}.factor"], bare.tensors["router"][f"{place}.factor"]
        )
        assert len(step.report["losses"]) == 8
    # With the hard projector a row is not moved along what earlier tasks look like.
    for earlier, row in ((0, 1), (0, 2), (1, 2)):
        leading = state.steps[earlier].tensors["router"][f"{place}.factor"][:3]
        assert (leading @ moved[row]).abs().max() < 1e-4 * moved[row].norm()


def test_refining_takes_the_loss_down(merge):
    losses = (
        merge(build(refine=100, lr=0.02, null_space="off", router_form="raw"), TASKS[:2])
        .steps[1]
        .report["losses"]
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


# --- how often a model runs what is read


class InEights(Clip):
    """Runs a few samples at a time."""

    def features(self, model, batch):
        with translated(DivergedError, "model: cannot run"):
            return torch.cat([super(InEights, self).features(model, part) for part in split(batch, 8)])


@pytest.mark.parametrize("reads", READS)
def test_a_model_may_run_a_few_samples_at_a_time(zoo, merge, arrive, reads):
    method = build(router_reads=reads, seeds_in_all=40)
    base = Base(InEights(), InEights().open(zoo / "base"))
    found = method.update(method.init(base), arrive(TASKS[0])).steps[0].tensors["router"]
    torch.testing.assert_close(dict(found), dict(merge(method, TASKS[:1]).steps[0].tensors["router"]))


class Often(Clip):
    """Runs all samples once, and some of them once more."""

    def features(self, model, batch):
        found = super().features(model, batch)
        super().features(model, next(split(batch, 3)))
        return found


def test_a_model_that_runs_some_samples_more_often_is_refused(zoo, arrive):
    method = build(router_reads="layer", seeds_in_all=40)
    base = Base(Often(), Often().open(zoo / "base"))
    with pytest.raises(ConfigError, match=r"reads \[40, 3\] samples in its calls, expected all 40"):
        method.update(method.init(base), arrive(TASKS[0]))


@pytest.mark.parametrize("sites", ["full", "mlp"])
def test_attention_weights_are_recorded_once(merge, base, pool, sites):
    method = build(sites=sites)
    for model in (method.model(merge(method, TASKS[:1])), base.model()):
        model.set_attn_implementation("eager")
        assert len(model(**pool.batch, output_attentions=True).attentions) == 2


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_texts_that_go_on_in_several_ways_keep_the_gates_of_their_beginning(tmp_path, more):
    family = FAMILIES["t5"]
    family.write(tmp_path)
    backbone = BACKBONES.get(family.backbone)()
    base = Base(backbone, backbone.open(tmp_path / "base"))
    batch = backbone.prepare(family.samples(0, 3), base.checkpoint)
    method = build(seeds_in_all=3)
    checkpoint = backbone.open(tmp_path / "task1")
    state = method.update(
        method.init(base), Arrival("task1", checkpoint, backbone.head(checkpoint), SeedPool(batch), seed=3)
    )
    model = method.model(state)
    torch.manual_seed(0)
    written = model.generate(**batch, max_new_tokens=4, **more)
    assert len(written) == 3 * more.get("num_return_sequences", 1)
    layer = dict(mixtures(model))["decoder.block.0.layer.0.SelfAttention.q"]
    with pytest.raises(RuntimeError, match="gates of 3 samples for 4"):
        layer(torch.zeros(4, 1, layer.A.shape[1]))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"router_depths": (1, 3)},
            ConfigError,
            r"router_depths: expected rising .* 1 to 2 .* found \(1, 3\)",
        ),
        (
            {"router_depths": (2, 1)},
            ConfigError,
            r"router_depths: expected rising .* 1 to 2 .* found \(2, 1\)",
        ),
        ({"seeds": "teacher"}, ConfigError, "ask no teacher"),
        ({"router_ridge": 1e-12}, ConfigError, "router_ridge"),
        ({"router_reads": "stem", "router_depths": (2,)}, ConfigError, "from 1 to 1 .*layers has 2 blocks"),
        ({"vectors": "gated", "router_reads": "block"}, ConfigError, "vectors: .* use router_reads 'trunk'"),
    ],
)
def test_what_cannot_be_is_refused(merge, changes, error, message):
    with pytest.raises(error, match=message):
        merge(build(**changes))


def test_seeds_are_needed(merge):
    with pytest.raises(SeedsError, match="none were given"):
        merge(build(), seeds=None)
