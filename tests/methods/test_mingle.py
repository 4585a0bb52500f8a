"""What is particular to the method: experts, gates, protection, seeds, replays and presets."""

import dataclasses

import pytest
import torch

from mingle.backbones.clip import Clip
from mingle.errors import ConfigError, SeedsError, UnknownNameError
from mingle.layers import mixtures
from mingle.methods import METHODS, Arrival, Base, SeedPool
from mingle.methods._mingle_options import MingleReplay
from mingle.subspace import PROJECTIONS

from .. import naive
from ..conftest import tensors_of

TASKS = ("task1", "task2", "task3")
BLOCKS = [f"vision_model.encoder.layers.{i}" for i in range(2)]
LIGHT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1")
FULL = (*LIGHT, "self_attn.out_proj", "mlp.fc2")
EITHER = pytest.mark.parametrize("preset", ["default", "learned"])


def build(preset="default", **changes):
    return METHODS.get("mingle").with_preset(preset, {"steps": 3, "rank": 4} | changes)


def learned(**changes):
    return build("learned", **changes)


def gates_of(state, step=-1):
    return state.steps[step].tensors["gates"]


def experts_of(state, step=-1):
    return state.steps[step].tensors["experts"]


def what_gates_are(state):
    """All that a run keeps but its experts: what seeds decide."""
    return {key: tensor for key, tensor in tensors_of(state).items() if key[1] != "experts"}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- where


@pytest.mark.parametrize(
    ("sites", "kinds"), [("full", FULL), ("light", LIGHT), ("light+out", (*LIGHT, "self_attn.out_proj"))]
)
@EITHER
def test_sites_are_exactly_the_named_layers(merge, preset, sites, kinds):
    method = build(preset, sites=sites)
    state = merge(method, TASKS[:1])
    expected = {f"{block}.{kind}" for block in BLOCKS for kind in kinds}
    assert dict(mixtures(method.model(state))).keys() == expected
    assert {name.removesuffix(".A") for name in experts_of(state) if name.endswith(".A")} == expected
    if preset == "default":
        assert state.steps[0].tensors.keys() == {"experts", "router"}
        return
    # One protected subspace per tensor that is read: q, k and v share theirs.
    groups = {
        f"{block}.{kind}" for block in BLOCKS for kind in kinds if kind[-6:] not in ("k_proj", "v_proj")
    }
    assert state.steps[0].tensors["subspace"].keys() == groups


def test_light_preset_is_the_light_sites(base):
    assert METHODS.get("mingle").with_preset("light").settings(base)["sites"] == "light"


def test_unknown_sites_are_refused_before_anything_is_computed(base):
    with pytest.raises(UnknownNameError, match="unknown sites 'ful'; did you mean full"):
        build(sites="ful").settings(base)


# --- experts


def test_first_expert_is_the_truncated_task_vector(merge, stored):
    experts = experts_of(merge(build(), TASKS[:1]))
    for block in BLOCKS:
        for kind in FULL:
            name = f"{block}.{kind}"
            delta = stored["task1"][f"{name}.weight"] - stored["base"][f"{name}.weight"]
            U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
            expected = U[:, :4] * S[:4] @ Vh[:4]
            found = experts[f"{name}.B"].double() @ experts[f"{name}.A"].double()
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_later_experts_are_projected_off_the_sum_of_earlier_ones(merge, stored, projection):
    state = merge(build(gates="static", projection=projection))
    for name in (f"{BLOCKS[0]}.mlp.fc1", f"{BLOCKS[1]}.self_attn.v_proj"):
        dense = [
            experts_of(state, t)[f"{name}.B"].double() @ experts_of(state, t)[f"{name}.A"].double()
            for t in range(3)
        ]
        for t in (1, 2):
            delta = (stored[TASKS[t]][f"{name}.weight"] - stored["base"][f"{name}.weight"]).double()
            a = state.steps[t].report["energy"]["effective_rank"][name]
            if projection == "none":
                projected = delta
                assert a == 0
            else:
                previous = sum(dense[:t])
                assert a == int(naive.entropy_rank(torch.linalg.svdvals(previous)[: 4 * t].tolist()))
                projected = naive.projected(delta, previous, projection, a)
            U, S, Vh = torch.linalg.svd(projected)
            torch.testing.assert_close(dense[t], U[:, :4] * S[:4] @ Vh[:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("vectors", ["dropped", "gated"])
def test_energy_is_accounted_for_to_the_last_part(merge, stored, projection, vectors):
    state = merge(build(gates="static", projection=projection, vectors=vectors), TASKS[:2])
    for step in state.steps:
        energy = step.report["energy"]
        shares = [energy[part] for part in ("kept", "projection", "rank", "not_merged")]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) == pytest.approx(1, abs=1e-9)
        deltas = {n: (t - stored["base"][n]).double() for n, t in stored[step.task].items()}
        total = sum(float(d.square().sum()) for d in deltas.values())
        assert energy["norm"] == pytest.approx(total**0.5, rel=1e-9)
        merged = {f"{block}.{kind}.weight" for block in BLOCKS for kind in FULL}
        kept = sum(
            float((step.tensors["experts"][f"{n[:-7]}.B"] @ step.tensors["experts"][f"{n[:-7]}.A"]).norm())
            ** 2
            for n in merged
        )
        if vectors == "gated":
            parts = [f"{b}.{k}.bias" for b in BLOCKS for k in FULL]
            parts += [f"{b}.layer_norm{i}.{p}" for b in BLOCKS for i in (1, 2) for p in ("weight", "bias")]
            kept += sum(float(deltas[n].square().sum()) for n in parts)
            merged |= set(parts)
        assert energy["kept"] == pytest.approx(kept / total, abs=1e-6)
        left = sum(float(d.square().sum()) for n, d in deltas.items() if n not in merged)
        assert energy["not_merged"] == pytest.approx(left / total, abs=1e-9)
    first, second = (step.report["energy"] for step in state.steps)
    assert first["projection"] == 0
    assert (second["projection"] > 0) == (projection != "none")
    assert second["rank"] > 0


def test_energy_of_nothing_is_nothing(merge, base):
    energy = merge(build(), TASKS[:1], checkpoint=base.checkpoint).steps[0].report["energy"]
    assert [energy[part] for part in ("norm", "kept", "projection", "rank", "not_merged")] == [0] * 5


# --- the merged model


def plain_model(base, stored, experts, value, vectors):
    """The base with W + g Σ B A (and every bias and LayerNorm + g Σ δ) as an ordinary model."""
    tensors = {name: tensor.clone() for name, tensor in stored["base"].items()}
    for step in experts:
        for name, tensor in step.items():
            if name.endswith(".A"):
                tensors[f"{name[:-2]}.weight"] += value * step[f"{name[:-2]}.B"] @ tensor
            elif not name.endswith(".B"):
                assert vectors == "gated"
                tensors[name] += value * tensor
    return naive.same_parameters(base.model(), tensors)


@pytest.mark.parametrize("vectors", ["dropped", "gated"])
@pytest.mark.parametrize("value", [0.3, 1.0])
def test_static_gates_are_a_weighted_sum_of_weights(base, merge, stored, pool, vectors, value):
    method = METHODS.get("mingle").with_preset(
        "static", {"rank": 4, "vectors": vectors} | ({} if value == 0.3 else {"static_gate": value})
    )
    assert method.settings(base)["static_gate"] == value
    state = merge(method, TASKS[:2], seeds=None)
    plain = plain_model(base, stored, [step.tensors["experts"] for step in state.steps], value, vectors)
    with torch.no_grad():
        expected, found = plain(**pool.batch).image_embeds, method.model(state)(**pool.batch).image_embeds
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - base.model()(**pool.batch).image_embeds).abs().max() > 1e-2


def test_static_gates_are_0_3_for_every_input(merge, pool):
    method = METHODS.get("mingle").with_preset("static", {"rank": 4})
    state = merge(method, seeds=None)
    assert not method.needs_seeds
    assert all("losses" not in step.report and "seeds" not in step.report for step in state.steps)
    assert all(step.tensors["subspace"] == {} for step in state.steps)
    for _, layer in mixtures(method.model(state)):
        x = torch.randn(2, 3, layer.A.shape[1], generator=torch.Generator().manual_seed(1))
        assert torch.equal(layer.gate(layer.pool(x)), torch.full((2, 3), 0.3))


def test_gates_of_a_finished_run_are_those_of_its_steps(merge):
    method = learned(steps=10, lr=1e-2)
    state = merge(method)
    for name, layer in mixtures(method.model(state)):
        rows = torch.stack([gates_of(state, t)[f"{name}.weight"] for t in range(3)])
        assert torch.equal(layer.gate.weight, rows)
        assert torch.equal(
            layer.gate.bias, torch.stack([gates_of(state, t)[f"{name}.bias"] for t in range(3)])
        )
        assert rows.abs().amax(1).min() > 1e-4
        assert layer.gate.new_weight is None


# --- adaptation


def test_adaptation_brings_the_student_nearer_to_the_teacher(base, merge, arrive, pool):
    from mingle.adaptation import kl_divergence

    method = learned(steps=40, lr=3e-3, rank=16, seeds_per_class=10)
    state = merge(method, TASKS[:1])
    arrival = arrive("task1")

    def logits(model):
        with torch.no_grad():
            return base.backbone.classify(base.backbone.features(model, pool.batch), arrival.head)

    teacher = logits(base.backbone.build(arrival.checkpoint))
    before = kl_divergence(logits(base.model()), teacher, 2.0)
    after = kl_divergence(logits(method.model(state)), teacher, 2.0)
    assert after < 0.7 * before
    losses = state.steps[0].report["losses"]
    assert len(losses) == 40
    # Gates start at zero: the first student is the base.
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("bias", ["free", "augmented"])
def test_hard_protection_keeps_new_gates_out_of_earlier_subspaces(merge, bias):
    state = merge(learned(null_space="hard", acts_on="update", gate_bias=bias, steps=20, lr=1e-2))
    bases = {}
    for step in state.steps:
        for group, new in step.tensors["subspace"].items():
            if group in bases and bases[group].shape[1]:
                w = step.tensors["gates"][f"{group}.weight"]
                c = step.tensors["gates"][f"{group}.bias"]
                row = torch.cat([w, c[None]]) if bias == "augmented" else w
                # The row starts at zero, so the product stays at zero.
                assert (row @ bases[group]).abs().max() < 1e-6
                assert row.norm() > 1e-3
            bases[group] = torch.cat([bases.get(group, new[:, :0]), new], dim=1)
    for group, basis in bases.items():
        width = 48 if group.endswith("fc2") else 32
        assert basis.shape[0] == width + (bias == "augmented")
        assert 3 <= basis.shape[1] <= 9
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)


def test_protection_matters(merge):
    """The same run without it does enter the protected span."""
    state = merge(learned(null_space="off", steps=20, lr=1e-2), TASKS[:2])
    inside = [
        (torch.cat([gates_of(state)[f"{g}.weight"], gates_of(state)[f"{g}.bias"][None]]) @ U).abs().max()
        for g, U in state.steps[0].tensors["subspace"].items()
    ]
    assert min(inside) > 1e-4


def test_protection_that_is_off_is_as_if_nothing_were_protected(merge):
    settings = {"steps": 5, "lr": 1e-2}
    off = merge(learned(null_space="off", **settings), TASKS[:2])
    nothing = merge(learned(directions=0, **settings), TASKS[:2])
    relaxed = merge(learned(**settings), TASKS[:2])
    hard = merge(learned(null_space="hard", **settings), TASKS[:2])
    assert same(gates_of(off), gates_of(nothing))
    assert not same(gates_of(off), gates_of(relaxed))
    assert not same(gates_of(hard), gates_of(relaxed))
    # γ = 0 is the hard projector, by whichever name.
    assert same(gates_of(hard), gates_of(merge(learned(gamma=0.0, **settings), TASKS[:2])))


def test_subspace_holds_the_leading_directions_of_the_layers_inputs(base, merge, pool, arrive):
    method = learned(seeds_per_class=10)
    state = merge(method, TASKS[:2])
    model = method.model(state)
    seen = {}
    layers = dict(mixtures(model))
    for group in state.steps[0].tensors["subspace"]:
        layers[group].register_forward_pre_hook(
            lambda _, args, group=group: seen.__setitem__(group, args[0].detach())
        )
    model(**pool.batch)
    for group, x in seen.items():
        rows = x.reshape(-1, x.shape[-1]).double()
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        top = torch.linalg.svd(rows, full_matrices=False).Vh[:3].mT
        basis = torch.cat([step.tensors["subspace"][group] for step in state.steps], dim=1).double()
        torch.testing.assert_close(basis @ (basis.mT @ top), top, atol=2e-3, rtol=0)


# --- seeds


@pytest.mark.parametrize(("per_class", "expected"), [(1, 4), (5, 20), (99, 40)])
@EITHER
def test_number_of_seeds(merge, preset, per_class, expected):
    seeds = merge(build(preset, seeds_per_class=per_class), TASKS[:1]).steps[0].report["seeds"]
    assert (seeds["used"], seeds["pool"], len(set(seeds["ids"]))) == (expected, 40, expected)


@EITHER
def test_labelled_seeds_are_balanced(merge, preset):
    ids = merge(build(preset, seeds="label"), TASKS[:1]).steps[0].report["seeds"]["ids"]
    assert sorted(int(i[2:]) % 4 for i in ids) == sorted([0, 1, 2, 3] * 5)


def test_teacher_seeds_are_balanced_by_what_the_teacher_says(base, merge, arrive, pool):
    arrival = arrive("task1")
    with torch.no_grad():
        features = base.backbone.features(base.backbone.build(arrival.checkpoint), pool.batch)
    said = base.backbone.classify(features, arrival.head).argmax(-1).tolist()
    unlabelled = dataclasses.replace(pool, labels=None)
    ids = merge(learned(seeds="teacher", seeds_per_class=2), TASKS[:1], seeds=unlabelled).steps[0]
    chosen = [said[int(i[2:])] for i in ids.report["seeds"]["ids"]]
    for label in set(said):
        fair = min(said.count(label), max(chosen.count(other) for other in set(said)) - 1)
        assert chosen.count(label) >= fair


@EITHER
def test_labelled_seeds_need_labels(merge, pool, preset):
    with pytest.raises(SeedsError, match="'label' needs labels"):
        merge(build(preset, seeds="label"), TASKS[:1], seeds=dataclasses.replace(pool, labels=None))


@EITHER
def test_labels_are_never_used_unless_asked_for(merge, pool, preset):
    shuffled = dataclasses.replace(pool, labels=pool.labels.flip(0))
    method = build(preset)
    one, two = merge(method, TASKS[:2]), merge(method, TASKS[:2], seeds=shuffled)
    assert what_gates_are(one)
    assert same(what_gates_are(one), what_gates_are(two))


@EITHER
def test_another_seed_draws_other_samples(merge, preset):
    one, two = (merge(build(preset), TASKS[:1], seed=seed) for seed in (1, 2))
    assert one.steps[0].report["seeds"]["ids"] != two.steps[0].report["seeds"]["ids"]
    assert not same(what_gates_are(one), what_gates_are(two))


# --- replay


def a_replay(state_width=32, **changes):
    generator = torch.Generator().manual_seed(9)
    gates = {
        f"{block}.{kind}": (
            0.01 * torch.randn(48 if kind == "mlp.fc2" else 32, generator=generator),
            torch.tensor(0.02),
        )
        for block in BLOCKS
        for kind in FULL
    }
    seeds = torch.randperm(40, generator=generator)[:12]
    batches = [torch.randperm(12, generator=generator)[:5] for _ in range(6)]
    return MingleReplay(**({"gates": gates, "seeds": seeds, "batches": batches} | changes))


def test_replay_reproduces_exactly_whatever_the_seed(merge):
    replay = a_replay()
    one, two = (merge(learned(), seed=seed, replay=replay) for seed in (1, 2))
    for t in range(3):
        assert same(gates_of(one, t), gates_of(two, t))
        assert one.steps[t].report["losses"] == two.steps[t].report["losses"]
        assert same(one.steps[t].tensors["subspace"], two.steps[t].tensors["subspace"])
    assert one.steps[0].report["seeds"]["ids"] == [f"id{i}" for i in replay.seeds.tolist()]
    assert len(one.steps[0].report["losses"]) == 6
    # Without a replay the seed does matter.
    assert not same(gates_of(merge(learned(), seed=1)), gates_of(merge(learned(), seed=2)))


def test_replayed_seeds_are_those_of_closed_form_gates(merge):
    replay = MingleReplay(seeds=a_replay().seeds)
    one, two = (merge(build(), seed=seed, replay=replay) for seed in (1, 2))
    assert same(what_gates_are(one), what_gates_are(two))
    assert one.steps[0].report["seeds"]["ids"] == [f"id{i}" for i in replay.seeds.tolist()]


@pytest.mark.parametrize("part", ["gates", "batches"])
def test_what_gates_in_closed_form_do_not_have_is_not_replayed(merge, part):
    replay = MingleReplay(**{part: getattr(a_replay(), part)})
    with pytest.raises(ConfigError, match=r"replay: .* seeds and effective_ranks alone, .*'adapted'"):
        merge(build(), TASKS[:1], replay=replay)


def test_replayed_gates_are_where_adaptation_starts(merge):
    replay = a_replay(batches=[])
    gates = gates_of(merge(learned(), TASKS[:1], replay=replay))
    for name, (weight, bias) in replay.gates.items():
        assert torch.equal(gates[f"{name}.weight"], weight)
        assert torch.equal(gates[f"{name}.bias"], bias)


def test_replayed_effective_ranks_are_used(merge):
    everywhere = {f"{block}.{kind}": 0 for block in BLOCKS for kind in FULL}
    method = build("static")
    free = merge(method, TASKS[:2], replay=MingleReplay(effective_ranks=everywhere))
    unprojected = merge(build("static", projection="none"), TASKS[:2])
    assert same(experts_of(free), experts_of(unprojected))
    drawn = merge(method, TASKS[:2])
    assert not same(experts_of(free), experts_of(drawn))
    ranks = drawn.steps[1].report["energy"]["effective_rank"]
    assert same(
        experts_of(merge(method, TASKS[:2], replay=MingleReplay(effective_ranks=ranks))), experts_of(drawn)
    )


def test_replay_of_something_else_is_refused(merge):
    with pytest.raises(ConfigError, match="replay: expected a MingleReplay, found dict"):
        merge(build(), TASKS[:1], replay={"gates": {}})


# --- options


def test_width_rule(base, monkeypatch):
    found = {}
    for width in (32, 192, 512, 768, 1024):
        monkeypatch.setattr(Clip, "width", lambda self, model, width=width: width)
        settings = METHODS.get("mingle").with_preset().settings(base)
        found[width] = settings["rank"]
        assert settings["lr"] == 1e-4
    assert found == {32: 16, 192: 16, 512: 42, 768: 64, 1024: 64}
    chosen = METHODS.get("mingle").with_preset(changes={"rank": 3, "lr": 0.5}).settings(base)
    assert (chosen["rank"], chosen["lr"]) == (3, 0.5)


COMMON = {
    "beta": 0.99,
    "gamma": 1.0,
    "directions": 3,
    "steps": 50,
    "batch_size": 16,
    "temperature": 2.0,
    "seeds_per_class": 5,
    "null_space": "relaxed",
    "sites": "full",
    "vectors": "dropped",
}
"""Section 4 and 5 of the method page: the same in every preset of section 7."""

TABLE = {
    "reference": {
        "gates": "adapted",
        "gate_reduction": "batch",
        "gate_init": "normal",
        "projection": "block",
        "acts_on": "gradient",
        "gate_bias": "free",
        "basis": "qr",
        "seeds": "label",
        "seed_pool": "scored",
        "loss": "soft_ce",
    },
    "paper": {
        "gates": "adapted",
        "gate_reduction": "sample",
        "gate_init": "zeros",
        "projection": "block+diagonal",
        "acts_on": "gradient",
        "gate_bias": "free",
        "basis": "qr",
        "seeds": "label",
        "seed_pool": "scored",
        "loss": "kl",
    },
    "learned": {
        "gates": "adapted",
        "gate_reduction": "sample",
        "gate_init": "zeros",
        "projection": "block",
        "acts_on": "update",
        "gate_bias": "augmented",
        "basis": "rank_revealing",
        "seeds": "random",
        "seed_pool": "held_out",
        "loss": "kl",
    },
    "default": {
        "gates": "analytic",
        "gate_reduction": "sample",
        "projection": "none",
        "seeds": "random",
        "seed_pool": "held_out",
        "router_reads": "trunk",
        "router_depths": None,
        "router_features": "mean+std+first",
        "router_ridge": 1e-2,
        "router_rank": None,
        "router_form": "softmax",
        "router_temperature": 0.05,
        "refine": 0,
    },
}


@pytest.mark.parametrize("preset", TABLE)
def test_presets_are_those_of_the_method_page(base, preset):
    method = METHODS.get("mingle").with_preset(preset)
    settings = method.settings(base)
    for name, value in (COMMON | TABLE[preset]).items():
        assert settings[name] == value, name
    assert method.scored_seeds == (settings["seed_pool"] == "scored")
    # A preset states all that makes it what it is: another default would not change it.
    assert preset == "default" or TABLE[preset].keys() <= METHODS.get("mingle").presets[preset].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"steps": -1},
        {"lr": 0},
        {"beta": 1.5},
        {"projection": "blocks"},
        {"gates": None},
        {"static_gate": float("nan")},
        {"temperature": float("inf")},
        {"lr": "fast"},
    ],
    ids=str,
)
def test_impossible_values_are_refused(changes):
    [(name, value)] = changes.items()
    with pytest.raises(ConfigError, match=f"method 'mingle': option '{name}': .*found ") as error:
        METHODS.get("mingle").with_preset(changes=changes)
    assert "\n" not in str(error.value)
    assert repr(value) in str(error.value)


def test_double_precision_base_gives_a_double_precision_run(zoo, images):
    backbone = Clip()
    base = Base(backbone, backbone.open(zoo / "base"), torch.float64)
    pixels = {k: v.double() for k, v in backbone.prepare(images, base.checkpoint).items()}
    for gates in ("adapted", "analytic", "static"):
        method = build(gates=gates)
        checkpoint = backbone.open(zoo / "task1")
        arrival = Arrival("task1", checkpoint, backbone.head(checkpoint), SeedPool(pixels))
        step = method.update(method.init(base), arrival).steps[0]
        assert {t.dtype for part in step.tensors.values() for t in part.values()} == {torch.float64}


def test_bfloat16_trunk_trains_nearly_the_same_gates(merge):
    exact, fast = (merge(learned(trunk=trunk, steps=10), TASKS[:2]) for trunk in ("exact", "bfloat16"))
    assert same(experts_of(exact), experts_of(fast))
    for kind in ("gates", "subspace"):
        ours, theirs = (state.steps[-1].tensors[kind] for state in (exact, fast))
        assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}
        assert not same(ours, theirs)
    ours, theirs = (torch.cat([t.reshape(-1) for t in gates_of(s).values()]) for s in (exact, fast))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95
    losses = [torch.tensor(state.steps[-1].report["losses"]) for state in (exact, fast)]
    torch.testing.assert_close(*losses, rtol=0.05, atol=1e-3)
