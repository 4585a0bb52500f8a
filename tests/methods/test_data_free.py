"""Every data-free method against its naive formula, step by step, and what its formula promises."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mingle.errors import ConfigError, DivergedError, UnknownNameError
from mingle.methods import METHODS, Arrival
from mingle.methods.base_linearwise import named_generator
from mingle.methods.ties import MagnitudeSearch

from .. import naive_methods

TASKS = ("task1", "task2", "task3")
# The tiny model is 32 wide: a sixth of that is protected by default, all of it by the paper's 128.
NUFILT = {"seed": 7, "rank": 6, "steps": 20}
CASES = [
    ("ties", "default", {}, {}),
    ("ties", "default", {"scale": 1.0, "density": 0.03}, {"scale": 1.0, "density": 0.03}),
    ("magmax", "default", {}, {}),
    ("consensus_ta", "default", {}, {}),
    ("consensus_ta", "reference", {}, {"masks": "newest"}),
    ("opcm", "default", {}, {}),
    ("opcm", "reference", {}, {"diagonal": "kept"}),
    ("opcm", "default", {"alpha": 0.0}, {"alpha": 0.0}),
    ("tsv_m", "default", {}, {}),
    ("tsv_m", "default", {"scale": 0.5}, {"scale": 0.5}),
    ("iso_c", "default", {}, {}),
    ("iso_c", "default", {"scale": 1.3}, {"scale": 1.3}),
    ("wudi", "default", {"steps": 30}, {"steps": 30}),
    ("wudi", "default", {"lr": 1e-3, "steps": 10}, {"lr": 1e-3, "steps": 10}),
    ("dop", "default", {"steps": 40}, {"steps": 40}),
    ("dop", "default", {"steps": 20, "energy": 0.5, "ema": 0.5}, {"steps": 20, "energy": 0.5, "ema": 0.5}),
    ("nufilt", "default", {"rank": 6, "steps": 20}, {**NUFILT, "previous_rank": 5}),
    ("nufilt", "default", {"rank": 6, "steps": 20, "previous_rank": 3}, {**NUFILT, "previous_rank": 3}),
    ("nufilt", "paper", {"rank": 6, "steps": 20}, {**NUFILT, "previous_rank": 32}),
]


@pytest.fixture(scope="module")
def stored(zoo):
    return {name: load_file(zoo / name / "model.safetensors") for name in ("base", *TASKS)}


def naively(stored, name, options, known={}):  # noqa: B006 – computed once for all tests
    key = name, *sorted(options.items())
    if key not in known:
        models = [stored[task] for task in TASKS]
        known[key] = naive_methods.run(getattr(naive_methods, name), stored["base"], models, **options)
    return known[key]


def merge(method, base, zoo, tasks=TASKS, seed=7):
    state = method.init(base)
    for task in tasks:
        state = method.update(state, Arrival(task, base.backbone.open(zoo / task), seed=seed))
    return state


def weights(state, t):
    return state.steps[t - 1].tensors["weights"]


def merged_by(name, base, zoo, tasks=TASKS, preset="default", **changes):
    return merge(METHODS.get(name).with_preset(preset, changes), base, zoo, tasks)


@pytest.mark.parametrize(("name", "preset", "changes", "options"), CASES)
def test_method_equals_its_naive_formula(base, zoo, stored, name, preset, changes, options):
    state = merged_by(name, base, zoo, preset=preset, **changes)
    for t, expected in enumerate(naively(stored, name, options), start=1):
        found = weights(state, t)
        assert found.keys() == expected.keys()
        for tensor, wanted in expected.items():
            assert found[tensor].dtype == torch.float32
            torch.testing.assert_close(
                found[tensor], wanted, atol=1e-6, rtol=0, msg=lambda m, n=tensor: f"{n}: {m}"
            )


def test_the_naive_formulas_are_not_all_the_same(stored):
    """Guards the test above: presets and options must be able to make a difference."""
    results = [naive_methods.flat(naively(stored, name, options)[-1]) for name, _, _, options in CASES]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-4 for other in results[:i])


@given(
    st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=40),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.data(),
)
def test_magnitude_search_finds_the_kth_largest(values, dtype, data):
    numbers = torch.tensor(values, dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    search = MagnitudeSearch(k, dtype)
    for _ in range(search.passes):
        for part in numbers.split(7):
            search.count(part)
        search.narrow()
    assert search.magnitude == numbers.abs().sort(descending=True).values[k - 1]


def test_ties_trims_the_model_as_one_vector(base, zoo, stored):
    state = merged_by("ties", base, zoo, scale=1.0)
    thresholds = state.steps[1].report["thresholds"]
    new = naive_methods.flat(stored["task2"]) - naive_methods.flat(stored["base"])
    assert int((new.abs() >= thresholds[1]).sum()) == int(0.2 * len(new))
    # Per tensor, the share that is kept is not the same everywhere.
    shares = [
        float(((stored["task2"][name] - origin).abs() >= thresholds[1]).float().mean())
        for name, origin in stored["base"].items()
    ]
    assert max(shares) - min(shares) > 0.05


def test_magmax_does_not_depend_on_the_order(base, zoo):
    one = weights(merged_by("magmax", base, zoo), 3)
    two = weights(merged_by("magmax", base, zoo, ("task3", "task1", "task2")), 3)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=0)


def test_consensus_counts_masks_up_to_what_has_to_agree(base, zoo):
    state = merged_by("consensus_ta", base, zoo, agree=2)
    for t in (1, 2, 3):
        masks = state.steps[t - 1].tensors["masks"]
        assert masks.keys() == weights(state, t).keys()
        assert {tensor.dtype for tensor in masks.values()} == {torch.uint8}
        assert max(int(tensor.max()) for tensor in masks.values()) == min(t, 2)
    assert "masks" not in merged_by("consensus_ta", base, zoo, preset="reference").steps[0].tensors


def test_opcm_keeps_the_norm_at_the_mean_of_the_task_vectors(base, zoo, stored):
    state = merged_by("opcm", base, zoo)
    origin = naive_methods.flat(stored["base"]).double()
    norms = [(naive_methods.flat(stored[task]).double() - origin).norm() for task in TASKS]
    assert state.steps[0].report["lambda"] == pytest.approx(1.0, abs=1e-6)
    for t in (1, 2, 3):
        merged = naive_methods.flat(dict(weights(state, t))).double() - origin
        assert float(merged.norm()) == pytest.approx(float(torch.stack(norms[:t]).mean()), rel=1e-6)
        assert state.steps[t - 1].report["mean_norm"] == pytest.approx(float(merged.norm()), rel=1e-6)


def test_opcm_adds_nothing_to_the_protected_block(base, zoo, stored):
    state = merged_by("opcm", base, zoo, ("task1", "task2"))
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    origin = stored["base"][name].double()
    merged = weights(state, 1)[name].double() - origin
    added = state.steps[1].report["lambda"] * (weights(state, 2)[name].double() - origin) - merged
    U, S, Vh = torch.linalg.svd(merged, full_matrices=False)
    block = U.mT @ added @ Vh.mT
    protected = int((S.cumsum(0) / S.sum() <= 0.5).sum())
    assert 0 < protected < len(S)
    assert block[:protected, :protected].abs().max() < 1e-6
    assert block.diagonal().abs().max() < 1e-6
    assert block.abs().max() > 0.05


def low_rank(seed, rows, columns):
    """A task vector that acts on some inputs and outputs only."""
    vector = torch.zeros(12, 10, dtype=torch.float64)
    shape = len(range(*rows.indices(12))), len(range(*columns.indices(10)))
    vector[rows, columns] = torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=vector.dtype
    )
    return vector


@pytest.mark.parametrize("name", ["tsv_m", "wudi"])
def test_vectors_that_do_not_interfere_are_added(name):
    """Other inputs, other outputs: nothing to decorrelate, no interference, the sum is the answer."""
    method = METHODS.get(name).with_preset()
    one, two = low_rank(1, slice(0, 5), slice(0, 4)), low_rank(2, slice(6, 12), slice(4, 9))
    found = method.merge_linear(one, two, 2, named_generator(0, "x"))
    torch.testing.assert_close(found, one + two, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "wudi", "dop", "nufilt"])
@pytest.mark.parametrize("first", [True, False])
def test_a_task_without_a_change_to_a_linear_is_no_disturbance(name, first):
    """Of two task vectors one may be zero; singular vectors of a zero matrix would be arbitrary."""
    method = METHODS.get(name).with_preset(changes={"steps": 3} if name in ("wudi", "dop", "nufilt") else {})
    vector = low_rank(1, slice(0, 5), slice(0, 4))
    pair = (torch.zeros_like(vector), vector) if first else (vector, torch.zeros_like(vector))
    found = method.merge_linear(*pair, 2, named_generator(0, "x"))
    if name == "iso_c":
        # Flattened, but in the directions of the other one only.
        assert int(torch.linalg.matrix_rank(found)) == int(torch.linalg.matrix_rank(vector)) == 4
        return
    torch.testing.assert_close(found, vector, atol=1e-9, rtol=0)


def test_iso_c_has_a_flat_spectrum_with_the_mean_of_the_sum(base, zoo, stored):
    name = "vision_model.encoder.layers.1.self_attn.q_proj.weight"
    found = weights(merged_by("iso_c", base, zoo, ("task1",)), 1)[name] - stored["base"][name]
    S = torch.linalg.svdvals((stored["task1"][name] - stored["base"][name]).double())
    torch.testing.assert_close(torch.linalg.svdvals(found.double()), S.mean().expand(32), atol=1e-6, rtol=0)


def test_nufilt_without_steps_leaves_the_protected_inputs_alone(base, zoo, stored):
    state = merged_by("nufilt", base, zoo, ("task1", "task2"), steps=0)
    name = "vision_model.encoder.layers.0.self_attn.v_proj.weight"
    origin, one, two = stored["base"][name], weights(state, 1)[name], weights(state, 2)[name]
    V = torch.linalg.svd((one - origin).double(), full_matrices=False)[2].mT
    assert ((two - one).double() @ V[:, :5]).abs().max() < 1e-6
    assert ((two - one).double() @ V[:, 5:]).abs().max() > 0.1


def test_nufilt_draws_from_the_seed_and_the_name(base, zoo):
    method = METHODS.get("nufilt").with_preset(changes={"steps": 3})
    one, two = (weights(merge(method, base, zoo, seed=seed), 2) for seed in (1, 2))
    q, k = (f"vision_model.encoder.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    assert not torch.equal(one[q], two[q])
    draws = [torch.randn(4, generator=named_generator(seed, name)) for seed in (1, 2) for name in (q, k)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_dop_moves_towards_both_models(base, zoo, stored):
    """Its weighted loss falls below that of the plain average, where it starts."""
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    vectors = [(stored[task][name] - stored["base"][name]).double() for task in TASKS[:2]]

    def loss(vector):
        def one(anchor):
            U, S, Vh = torch.linalg.svd(anchor, full_matrices=False)
            away = vector - anchor
            return float((S[:, None] * (U.mT @ away)).square().sum() + ((away @ Vh.mT) * S).square().sum())

        return 0.8 * one(vectors[0]) + 0.2 * one(vectors[1])

    method = METHODS.get("dop").with_preset()
    found = method.merge_linear(*vectors, 2, named_generator(0, name))
    assert loss(found) < 0.8 * loss(sum(vectors) / 2)


def test_a_merge_that_diverges_says_where(base, zoo):
    state = merged_by("wudi", base, zoo, ("task1", "task2"), lr=1e300, steps=2)
    with pytest.raises(
        DivergedError, match=r"task 'task2': vision_model\..*weight: .*non-finite.* smaller lr"
    ):
        dict(weights(state, 2))


@pytest.mark.parametrize("name", ["opcm", "tsv_m", "iso_c", "wudi", "dop", "nufilt"])
def test_unknown_sites_are_refused_before_anything_is_merged(base, name):
    method = METHODS.get(name).with_preset(changes={"sites": "ful"})
    with pytest.raises(UnknownNameError, match="unknown sites 'ful'; did you mean full"):
        method.settings(base)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ties", "density", 0),
        ("ties", "scale", -1),
        ("magmax", "scale", 0),
        ("consensus_ta", "agree", 0),
        ("consensus_ta", "masks", "all"),
        ("opcm", "alpha", 1.5),
        ("opcm", "diagonal", "half"),
        ("dop", "energy", 0),
        ("nufilt", "share", 2),
        ("wudi", "steps", -1),
    ],
)
def test_options_out_of_range_are_refused(name, option, value):
    with pytest.raises(ConfigError, match=f"method '{name}': option '{option}'"):
        METHODS.get(name).with_preset(changes={option: value})


def test_tensors_that_a_checkpoint_leaves_out_count_as_the_base(base, zoo, stored):
    missing = "vision_model.encoder.layers.0.mlp.fc1.weight"
    for name in ("ties", "opcm", "iso_c"):
        method = METHODS.get(name).with_preset()
        checkpoint = base.backbone.open(zoo / "task1")
        entries = {n: e for n, e in checkpoint.entries.items() if n != missing}
        arrival = Arrival("task1", dataclasses.replace(checkpoint, entries=entries))
        found = weights(method.update(method.init(base), arrival), 1)
        assert torch.equal(found[missing], stored["base"][missing])
