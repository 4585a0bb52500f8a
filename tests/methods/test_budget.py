"""A bound on all experts together: what is kept, what it costs, and that nothing else changes."""

import dataclasses
from itertools import product

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mingle.errors import ConfigError
from mingle.layers import LowRankExpert, build_expert, mixtures
from mingle.methods import METHODS
from mingle.methods import _mingle_gates as gates_module
from mingle.methods import mingle_seq as seq_module
from mingle.methods._mingle_budget import kept_ranks, merge_duplicates
from mingle.methods.base_experts import served_expert
from mingle.state import MergeRun
from mingle.subspace import truncated_svd

from ..conftest import write_checkpoint

TASKS = ("task1", "task2", "task3")
LINEARS = 12
ONE_RANK = 2 * (4 * (32 + 32) + 2 * (32 + 48)) * 4
"""Bytes of one rank in each of them."""


EITHER = pytest.mark.parametrize("preset", ["default", "learned"])


def build(method="mingle", preset="default", **changes):
    return METHODS.get(method).with_preset(preset, {"steps": 3, "rank": 4, "lr": 1e-2} | changes)


def outputs(base, method, state, pool):
    with torch.no_grad():
        return base.backbone.features(method.model(state), pool.batch)


def ranks_of(state):
    return state.steps[-1].tensors["ranks"]


def dense(expert):
    return expert.B.double() @ expert.A.double()


def random_expert(generator, rank, d_out=9, d_in=7):
    delta = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    return build_expert(delta, [], rank=rank, projection="none")[0]


energies = st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=1, max_size=4).map(
    lambda lists: [torch.tensor(sorted(values, reverse=True), dtype=torch.float64) for values in lists]
)


# --- what is kept


@given(energies, st.integers(0, 12))
@example([torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0]), torch.tensor([0.0])], 3)
def test_no_other_choice_of_ranks_keeps_more_energy(experts, limit):
    """By trying all of them, among those that give every expert with energy a rank as far as they go."""
    kept = kept_ranks(experts, [1] * len(experts), limit)
    assert sum(kept) == min(limit, sum(map(len, experts)))

    def value(ranks):
        firsts = sum(rank > 0 and float(e[0]) > 0 for rank, e in zip(ranks, experts, strict=True))
        return firsts, sum(float(e[:rank].sum()) for rank, e in zip(ranks, experts, strict=True))

    choices = product(*(range(len(e) + 1) for e in experts))
    assert value(kept) == max(value(ranks) for ranks in choices if sum(ranks) <= limit)


@given(energies, st.lists(st.integers(1, 9), min_size=4, max_size=4), st.integers(0, 60))
def test_ranks_of_any_cost_stay_within_the_limit_and_leave_no_room(experts, costs, limit):
    kept = kept_ranks(experts, costs, limit)
    spent = sum(rank * cost for rank, cost in zip(kept, costs, strict=False))
    assert spent <= limit
    left = [cost for e, rank, cost in zip(experts, kept, costs, strict=False) if rank < len(e)]
    assert all(cost > limit - spent for cost in left)


@given(st.integers(0, 9), st.integers(1, 6))
def test_fewer_ranks_of_an_expert_are_its_svd_truncated_again(seed, rank):
    expert = random_expert(torch.Generator().manual_seed(seed), 6)
    step = {"experts": {"x.A": expert.A, "x.B": expert.B}, "ranks": {"x": torch.tensor([rank])}}
    U, S, V = truncated_svd(dense(expert), rank)
    torch.testing.assert_close(dense(served_expert([step], 0, "x")), U * S @ V.mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("method", "preset"), [("mingle", "default"), ("mingle", "learned"), ("mingle_seq", "default")]
)
@pytest.mark.parametrize("budget", [1, 2, 6, f"{2.5 * ONE_RANK / 1e6:.6f}MB"])
def test_all_experts_together_stay_within_the_budget(base, merge, pool, method, preset, budget):
    chosen = build(method, preset, budget=budget)
    state = merge(chosen)
    for t in (1, 2, 3):
        layers = dict(mixtures(chosen.model(state.prefix(t))))
        assert len(layers) == LINEARS
        size = sum(layer.A.nbytes + layer.B.nbytes for layer in layers.values())
        if isinstance(budget, int):
            assert {len(layer.A) for layer in layers.values()} == {min(budget, 4 * t)}
        else:
            # As much as fits: less than one rank of the narrowest Linear is left.
            assert 2.5 * ONE_RANK - 4 * (32 + 32) < size <= 2.5 * ONE_RANK
    own = state.steps[-1].tensors
    for name, ranks in own["ranks"].items():
        assert own["experts"][f"{name}.A"].shape[0] == own["experts"][f"{name}.B"].shape[1] == int(ranks[-1])
        # What was given up does not come back.
        assert (ranks[:2] <= state.steps[1].tensors["ranks"][name]).all()
        assert ranks.min() == 0 or ranks.sum() >= 3
        assert ranks.min() >= 1 or budget != 6
    assert torch.isfinite(outputs(base, chosen, state, pool)).all()


@EITHER
def test_a_budget_with_room_for_everything_changes_no_bit(base, merge, pool, preset):
    free, bound = build(preset=preset), build(preset=preset, budget=12)
    expected, found = merge(free), merge(bound)
    for one, two in zip(expected.steps, found.steps, strict=True):
        for stem, tensors in one.tensors.items():
            assert tensors.keys() == two.tensors[stem].keys()
            assert all(torch.equal(tensor, two.tensors[stem][name]) for name, tensor in tensors.items())
        assert set(two.report["budget"]["lost"].values()) == {0.0}
    assert torch.equal(outputs(base, free, expected, pool), outputs(base, bound, found, pool))
    less = build(preset=preset, budget=11)
    assert not torch.equal(outputs(base, free, expected, pool), outputs(base, less, merge(less), pool))


@pytest.mark.parametrize(
    ("gates", "changes"), [("gates", {"preset": "learned"}), ("router", {"router_reads": "block"})]
)
def test_an_expert_that_is_cut_is_one_of_that_rank(merge, gates, changes):
    """Gates too: they are adapted to, or read, what is left, not what was there before."""
    cut, plain = (merge(build(**changes, **more), TASKS[:1]) for more in ({"budget": 2}, {"rank": 2}))
    for stem in ("experts", gates):
        for name, tensor in plain.steps[0].tensors[stem].items():
            torch.testing.assert_close(cut.steps[0].tensors[stem][name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stored", ["exact", "bfloat16"])
@pytest.mark.parametrize(("method", "preset"), [("mingle", "learned"), ("mingle_seq", "default")])
def test_what_is_measured_while_adapting_is_what_is_served(merge, monkeypatch, method, preset, stored):
    seen, measure = [], gates_module.new_directions

    def recorded(state, options, model, layers, batch, head):
        seen.append({name: (layer.A, layer.B, layer.sharing) for name, layer in layers.items()})
        return measure(state, options, model, layers, batch, head)

    monkeypatch.setattr(gates_module, "new_directions", recorded)
    monkeypatch.setattr(seq_module, "new_directions", recorded)
    chosen = build(method, preset, budget=5, stored=stored)
    state = merge(chosen)
    for t in (1, 2, 3):
        for name, layer in mixtures(chosen.model(state.prefix(t))):
            A, B, sharing = seen[t - 1][name]
            assert torch.equal(layer.A, A)
            assert torch.equal(layer.B, B)
            assert layer.sharing is sharing is None


def test_a_task_without_a_vector_takes_no_room(base, arrive):
    method = build(budget=4)
    state = method.update(method.init(base), arrive("task1", name="nothing", checkpoint=base.checkpoint))
    state = method.update(state, arrive("task1"))
    assert all(ranks.tolist() == [0, 4] for ranks in ranks_of(state).values())
    assert set(state.steps[1].report["budget"]["lost"].values()) == {0.0}


def test_trained_experts_are_turned_so_that_the_last_ranks_hold_the_least(merge):
    experts = merge(build("mingle_seq", budget=20, steps=10), TASKS[:1]).steps[0].tensors["experts"]
    plain = merge(build("mingle_seq", steps=10), TASKS[:1]).steps[0].tensors["experts"]
    for name in (n.removesuffix(".A") for n in experts if n.endswith(".A")):
        A, B = (experts[f"{name}.{factor}"].double() for factor in "AB")
        torch.testing.assert_close(B.mT @ B, torch.eye(4).double(), atol=1e-5, rtol=0)
        gram = A @ A.mT
        torch.testing.assert_close(
            gram, gram.diagonal().sort(descending=True).values.diag(), atol=1e-5, rtol=0
        )
        expected = plain[f"{name}.B"].double() @ plain[f"{name}.A"].double()
        torch.testing.assert_close(B @ A, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_far_from_the_base_does_not_starve_the_others(base, arrive, zoo, tmp_path):
    """The same task vector, and 30 times it: its ranks are worth the same."""
    start, tuned = (load_file(zoo / name / "model.safetensors") for name in ("base", "task1"))
    write_checkpoint(tmp_path / "far", {n: t + 30 * (tuned[n] - t) for n, t in start.items()}, {}, 1)
    (tmp_path / "far" / "config.json").write_text((zoo / "task1" / "config.json").read_text())
    method = build(budget=6, projection="none", merge_cosine=2, gates="static")
    state = method.update(method.init(base), arrive("task1"))
    state = method.update(state, arrive("task1", name="far", checkpoint=base.backbone.open(tmp_path / "far")))
    assert all(ranks.tolist() == [3, 3] for ranks in ranks_of(state).values())


def test_what_was_given_up_is_reported(merge):
    state = merge(build(budget=6))
    norms = [step.report["energy"]["norm"] for step in state.steps]
    before = state.steps[1].tensors["ranks"]
    for t in (0, 1):
        lost = 0.0
        for name, ranks in ranks_of(state).items():
            A = state.steps[t].tensors["experts"][f"{name}.A"]
            lost += float(A[int(ranks[t]) : int(before[name][t])].double().square().sum())
        assert state.steps[2].report["budget"]["lost"][TASKS[t]] == pytest.approx(lost / norms[t] ** 2)
        assert lost > 0
    report = state.steps[2].report["budget"]
    assert report["ranks"].keys() == report["lost"].keys() == report["merged"].keys() == set(TASKS)
    assert sum(report["ranks"].values()) == 6 * report["linears"] == 6 * LINEARS


# --- what stays as it is


@EITHER
def test_undo_and_history_give_back_the_bits(zoo, images, tmp_path, preset):
    options = {"steps": 2, "rank": 4, "budget": 5}
    run = MergeRun.create(tmp_path / "run", zoo / "base", preset=preset, options=options)
    run.add(zoo / "task1", seeds=images)
    run.add(zoo / "task2", seeds=images)
    files = {p: p.read_bytes() for p in (tmp_path / "run" / "steps").rglob("*") if p.is_file()}
    before, manifest = run.model().state_dict(), (tmp_path / "run" / "mingle.json").read_bytes()
    run.add(zoo / "task3", seeds=images)
    assert {p: p.read_bytes() for p in files} == files
    earlier = run.model(steps=2).state_dict()
    taken = [r[:2].sum() < 5 for r in run.state.steps[2].tensors["ranks"].values()]
    assert any(taken)
    run.undo()
    again = MergeRun.open(tmp_path / "run")
    assert (tmp_path / "run" / "mingle.json").read_bytes() == manifest
    for other in (earlier, again.model().state_dict()):
        assert other.keys() == before.keys()
        assert all(torch.equal(other[n], tensor) for n, tensor in before.items())


@EITHER
def test_stopped_and_resumed_it_is_the_same(merge, arrive, base, zoo, images, tmp_path, preset):
    options = {"steps": 2, "rank": 4, "budget": 7, "stored": "float16"}
    options |= {"projection": "none", "merge_cosine": 0.7}
    MergeRun.create(tmp_path / "run", zoo / "base", preset=preset, options=options, seed=3)
    method = METHODS.get("mingle").with_preset(preset, options)
    state = method.init(base)
    for number, task in enumerate(("task1", "task2", "task1")):
        MergeRun.open(tmp_path / "run").add(zoo / task, name=f"{number}", seeds=images)
        state = method.update(state, arrive(task, name=f"{number}"))
    stored = MergeRun.open(tmp_path / "run").state
    assert stored.steps[-1].tensors["sharing"].keys() == ranks_of(state).keys()
    for one, two in zip(stored.steps, state.steps, strict=True):
        for stem, tensors in two.tensors.items():
            assert one.tensors[stem].keys() == tensors.keys()
            assert all(torch.equal(one.tensors[stem][name], tensor) for name, tensor in tensors.items())
        assert one.report["budget"] == two.report["budget"]


# --- experts that are nearly the same


@given(st.integers(0, 20), st.floats(0.1, 10), st.floats(0, 0.2))
def test_one_expert_stands_for_another_as_well_as_one_multiple_of_it_can(seed, scale, noise):
    generator = torch.Generator().manual_seed(seed)
    first, other = random_expert(generator, 3), random_expert(generator, 2)
    change = random_expert(generator, 1)
    like = LowRankExpert(
        torch.cat([scale * first.A, noise * change.A]), torch.cat([first.B, change.B], dim=1)
    )
    experts = [first, other, like]
    sharing, merged = merge_duplicates(experts, torch.eye(3, dtype=torch.float64), 0.9)
    cosine = torch.cosine_similarity(dense(first).flatten(), dense(like).flatten(), dim=0)
    assert (merged.keys() == {2}) == bool(cosine >= 0.9)
    if not merged:
        assert torch.equal(sharing, torch.eye(3, dtype=torch.float64))
        return
    assert merged[2] == pytest.approx(float(cosine**2))
    gates = torch.randn(3, generator=generator, dtype=torch.float64)
    exact = sum(g * dense(e) for g, e in zip(gates, experts, strict=True))
    found = sum(g * dense(e) for g, e in zip(gates @ sharing, experts, strict=True))
    rest = (1 - cosine**2).clamp_min(0).sqrt() * gates[2].abs() * dense(like).norm()
    torch.testing.assert_close((exact - found).norm(), rest, atol=1e-6, rtol=1e-6)


def test_merged_experts_of_merged_experts_go_to_the_first():
    expert = random_expert(torch.Generator().manual_seed(1), 2)
    gone = LowRankExpert(expert.A[:0], expert.B[:, :0])
    twice = LowRankExpert(2 * expert.A, expert.B)
    before = torch.eye(3, dtype=torch.float64)
    before[:, 1] += before[:, 2]
    before[:, 2] = 0
    sharing, merged = merge_duplicates([expert, twice, gone], before, 0.95)
    assert merged.keys() == {1}
    torch.testing.assert_close(sharing, torch.tensor([[1.0, 0, 0], [2, 0, 0], [2, 0, 0]]).double())


def test_experts_with_a_bias_of_their_own_stay_apart():
    expert = random_expert(torch.Generator().manual_seed(1), 2)
    biased = dataclasses.replace(expert, bias=torch.ones(9, dtype=torch.float64))
    assert merge_duplicates([expert, biased], torch.eye(2, dtype=torch.float64), 0.9)[1] == {}


@pytest.mark.parametrize("old_gates", ["frozen", "trained"])
@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_the_same_checkpoint_again_takes_no_room_and_changes_nothing(base, merge, pool, old_gates, reduction):
    changes = {"projection": "none", "old_gates": old_gates, "gate_reduction": reduction, "steps": 6}
    changes |= {"preset": "learned"}
    free, bound = build(**changes), build(**changes, budget=4)
    arrivals = ("task1", "task1")
    expected, found = merge(free, arrivals), merge(bound, arrivals)
    for layer in dict(mixtures(bound.model(found))).values():
        assert len(layer.A) == 4
    assert found.steps[1].report["budget"]["merged"] == {"task1": LINEARS}
    for name, tensor in expected.steps[1].tensors["gates"].items():
        torch.testing.assert_close(found.steps[1].tensors["gates"][name], tensor, atol=2e-4, rtol=1e-3)
    one, two = outputs(base, free, expected, pool), outputs(base, bound, found, pool)
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)
    # The second gate counts: without it the output is another one.
    model = bound.model(found)
    for _, layer in mixtures(model):
        layer.share(torch.diag(torch.tensor([1.0, 0.0])))
    with torch.no_grad():
        assert (base.backbone.features(model, pool.batch) - one).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes", [{}, {"router_form": "raw"}, {"router_reads": "block"}, {"router_reads": "layer"}], ids=str
)
@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_so_it_is_with_gates_in_closed_form(base, merge, pool, reduction, changes):
    """Two rows for one task share what one of them would have, and both act through one expert."""
    changes = {"gate_reduction": reduction, **changes}
    free, bound = build(**changes), build(**changes, budget=8)
    arrivals = ("task2", "task1", "task1")
    expected, found = merge(free, arrivals), merge(bound, arrivals)
    model = bound.model(found)
    assert {len(layer.A) for _, layer in mixtures(model)} == {8}
    assert [ranks.tolist() for ranks in ranks_of(found).values()] == [[4, 4, 0]] * LINEARS
    one, two = outputs(base, free, expected, pool), outputs(base, bound, found, pool)
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)
    # The third gate counts: without it the output is another one.
    for _, layer in mixtures(model):
        layer.share(torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    with torch.no_grad():
        assert (base.backbone.features(model, pool.batch) - one).abs().max() > 1e-2


@EITHER
def test_what_was_merged_stays_merged(base, merge, pool, preset):
    """Of a task that came twice, the second gate acts through the first expert for good."""
    method = build(preset=preset, budget=6, projection="none")
    state = merge(method, ("task1", "task1", "task2", "task3"))
    assert state.steps[-1].tensors["sharing"].keys() == ranks_of(state).keys()
    for name, ranks in ranks_of(state).items():
        assert ranks[1] == 0
        sharing = state.steps[-1].tensors["sharing"][name]
        expected = torch.eye(4, dtype=torch.float64)
        expected[1] = torch.tensor([float(sharing[1, 0]), 0, 0, 0])
        assert torch.equal(sharing, expected)
        assert sharing[1, 0] == pytest.approx(1, abs=0.05)
    assert state.steps[-1].report["budget"]["merged"] == {"task1": LINEARS, "task2": 0, "task3": 0}


def test_above_1_nothing_is_merged(merge):
    state = merge(build(budget=4, projection="none", merge_cosine=1.5), ("task1", "task1"))
    assert not state.steps[1].tensors["sharing"]
    assert all(ranks.tolist() == [2, 2] for ranks in ranks_of(state).values())


# --- what may be asked for


@pytest.mark.parametrize(
    ("given", "used"), [(48, 48), ("48", 48), ("20MB", "20MB"), (" 1.5 mb", "1.5MB"), (None, None)]
)
def test_ranks_or_megabytes(given, used):
    assert build(budget=given).options.budget == used


@pytest.mark.parametrize("wrong", [0, -3, 1.5, True, "0MB", "48GB", "", "inf MB", "٣", [48]])
def test_anything_else_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"option 'budget': expected ranks in every Linear, such as 48"):
        build(budget=wrong)


def test_too_few_bytes_are_refused_before_anything_is_computed(base):
    build(budget=f"{ONE_RANK / 1e6}MB").settings(base)
    build(budget=f"{ONE_RANK / 2e6}MB", stored="bfloat16").settings(base)
    with pytest.raises(ConfigError, match=r"0.001MB is less than one rank in each of 12 Linears.*0.004MB"):
        build(budget="0.001MB").settings(base)
