"""Seeds of another task are noticed, those of the task's own are not, and neither stops anything."""

import dataclasses
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.adaptation import router_statistics
from mingle.backbones import Head
from mingle.errors import SeedsWarning
from mingle.methods import METHODS, SeedPool, State, Step
from mingle.methods._seed_check import ASKED, FEWEST, look_at_seeds, nearest_task, seed_looks
from mingle.state import MergeRun

GATES = ("adapted", "analytic")


def naive_information(logits):
    """The mutual information of sample and class, sum by sum, over the log of how many there may be."""
    samples, classes = logits.shape
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    mean = [sum(row[c] for row in p) / samples for c in range(classes)]
    total = sum(row[c] * math.log(row[c] / mean[c]) for row in p for c in range(classes)) / samples
    return total / math.log(min(samples, classes))


@given(st.integers(2, 9), st.integers(2, 5), st.integers(0, 99), st.floats(0.1, 5))
def test_information_is_that_of_sample_and_class(samples, classes, seed, scale):
    logits = scale * torch.randn(
        samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    assert seed_looks(logits).information == pytest.approx(naive_information(logits), abs=1e-9)


def test_sure_and_various_is_one_and_unsure_or_uniform_is_none():
    sure = 100 * torch.eye(4).repeat(8, 1)
    assert seed_looks(sure).information == pytest.approx(1)
    assert seed_looks(sure).entropy == pytest.approx(0, abs=1e-6)
    unsure = torch.zeros(32, 4)
    assert seed_looks(unsure).information == pytest.approx(0, abs=1e-6)
    assert seed_looks(unsure).entropy == pytest.approx(1)
    assert seed_looks(sure[:1].repeat(32, 1)).information == pytest.approx(0, abs=1e-6)
    assert [seed_looks(logits).doubtful for logits in (sure, unsure, sure[:1].repeat(32, 1))] == [
        False,
        True,
        True,
    ]


def test_sure_of_few_classes_is_no_doubt():
    few = seed_looks(100 * torch.eye(10)[[0] * 30 + [1] * 5])
    assert few.information < few.expected
    assert few.sureness == pytest.approx(1)
    assert not few.doubtful


def test_fewer_seeds_are_asked_for_less():
    assert seed_looks(torch.zeros(16, 4)).expected < seed_looks(torch.zeros(64, 4)).expected < 0.5


# --- one task whose model knows four kinds of pictures, and noise, which is none of them

KINDS = 4


def pictures(count, seed):
    """Pictures of four kinds with a little noise: labels 0, 1, 2, 3, 0, …"""
    patterns = torch.randint(0, 2, (KINDS, 3, 16, 16), generator=torch.Generator().manual_seed(77)) * 200
    noise = torch.randint(0, 30, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return (patterns[torch.arange(count) % KINDS] + noise).to(torch.uint8)


def foreign(count, seed):
    """Pictures of one kind that the model was never shown."""
    noise = torch.randint(0, 30, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return (noise + 90).to(torch.uint8)


@pytest.fixture
def knowing(base, zoo):
    """The class embeddings by which task1's model tells the four kinds apart."""
    backbone = base.backbone
    model = backbone.build(backbone.open(zoo / "task1"))
    seen = backbone.features(model, backbone.prepare(pictures(40, 1), base.checkpoint))
    means = torch.stack([seen[torch.arange(40) % KINDS == kind].mean(0) for kind in range(KINDS)])
    solved = torch.linalg.lstsq(means.double(), torch.eye(KINDS, dtype=torch.float64)).solution
    return Head(tuple("abcd"), {"class_embeddings": solved.mT.float(), "logit_scale": torch.tensor(30.0)})


@pytest.fixture
def start(tmp_path, zoo):
    def create(gates, **more):
        options = {"gates": gates, "rank": 4, "steps": 2, **more}
        return MergeRun.create(tmp_path / gates, zoo / "base", options=options)

    return create


@pytest.mark.parametrize("gates", GATES)
def test_seeds_of_the_task_raise_no_doubt(gates, start, zoo, knowing):
    run = start(gates)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = run.add(zoo / "task1", seeds=pictures(40, 2), head=knowing)
    found = step.report["seed_check"]
    assert found["information"] > 0.8 > found["expected"]
    assert "warning" not in found


@pytest.mark.parametrize("gates", GATES)
def test_foreign_seeds_are_named_and_used_all_the_same(gates, start, zoo, knowing):
    run = start(gates)
    with pytest.warns(
        SeedsWarning, match=r"task 'task1': seeds from .* do not look like its task: .* 0\.\d\d"
    ) as said:
        step = run.add(zoo / "task1", seeds=foreign(40, 2), head=knowing)
    assert step.report["seed_check"]["warning"] == str(said[0].message)
    assert "\n" not in str(said[0].message)
    assert MergeRun.open(run.path).info("task1")["report"]["seed_check"] == step.report["seed_check"]


def test_a_warning_that_is_an_error_comes_after_the_step_is_in(start, zoo, knowing):
    run = start("analytic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SeedsWarning):
            run.add(zoo / "task1", seeds=foreign(40, 2), head=knowing)
    assert MergeRun.open(run.path).tasks == ("task1",)


def test_seeds_of_an_earlier_task_are_recognised(start, zoo, knowing):
    run = start("analytic")
    run.add(zoo / "task2", seeds=foreign(40, 2), head=knowing)
    run.add(zoo / "task3", seeds=pictures(40, 4), head=knowing)
    with pytest.warns(SeedsWarning, match="lie where the seeds of task 'task2' lay"):
        step = run.add(zoo / "task1", seeds=foreign(40, 3), head=knowing)
    assert step.report["seed_check"]["nearest"] == "task2"


def test_statistics_that_are_cut_name_no_task(start, zoo, knowing):
    run = start("analytic", router_rank=1)
    run.add(zoo / "task2", seeds=foreign(40, 2), head=knowing)
    with pytest.warns(SeedsWarning, match="do not look like its task"):
        step = run.add(zoo / "task1", seeds=foreign(40, 3), head=knowing)
    assert step.report["seed_check"]["nearest"] is None


@given(st.integers(0, 99))
def test_nearest_is_the_task_that_was_drawn_from(seed):
    generator = torch.Generator().manual_seed(seed)

    def step(task, shift):
        seen = torch.randn(50, 64, generator=generator) + shift
        factor, mean = router_statistics(seen)
        return Step(task, {"router": {"x.factor": factor, "x.mean": mean}}, report={"seeds": {"used": 50}})

    state = State(None, (step("a", 0.0), step("b", 2.0)))
    assert nearest_task(state, step("new", 2.0).tensors["router"], 50) == "b"
    assert nearest_task(state, step("new", 1.0).tensors["router"], 50) is None
    assert nearest_task(State(None), step("new", 1.0).tensors["router"], 50) is None


def test_who_is_not_asked(base, arrive, pool, knowing):
    def looked(**changes):
        return look_at_seeds(base, arrive("task1", **changes))

    few = SeedPool({k: v[: FEWEST - 1] for k, v in pool.batch.items()})
    one = Head(("a",), {"class_embeddings": torch.ones(1, 24), "logit_scale": torch.tensor(1.0)})
    assert looked() is not None
    assert looked(head=None) is looked(seeds=None) is looked(seeds=few) is looked(head=one) is None
    broken = dataclasses.replace(knowing, tensors=knowing.tensors | {"logit_scale": torch.tensor(torch.inf)})
    assert looked(head=broken) is None


def test_at_most_so_many_are_asked_over_the_whole_pool(base, arrive, knowing):
    # The first half of the pool is wrong: a look at its beginning would say all of it is.
    batch = base.backbone.prepare(torch.cat([foreign(100, 3), pictures(100, 4)]), base.checkpoint)
    found = look_at_seeds(base, arrive("task1", head=knowing, seeds=SeedPool(batch)))
    assert found.seeds == ASKED
    every = base.backbone.build(base.backbone.open(base.checkpoint.source.replace("base", "task1")))
    asked = {name: tensor[torch.arange(ASKED) * 200 // ASKED] for name, tensor in batch.items()}
    assert found == seed_looks(base.backbone.class_logits(every, asked, knowing))


def test_methods_without_seeds_are_not_checked(base, arrive):
    state = METHODS.get("mingle").with_preset("static", {"rank": 4}).init(base)
    step = METHODS.get("mingle").with_preset("static", {"rank": 4}).update(state, arrive("task1")).steps[0]
    assert "seed_check" not in step.report
