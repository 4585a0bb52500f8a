"""The laws that every family of models keeps. A new family is tested by one entry in `families.py`."""

from functools import cached_property

import pytest
import torch

from mingle.backbones import BACKBONES, split, take
from mingle.errors import CheckpointError
from mingle.layers import LowRankExpert, wrap
from mingle.methods import Base
from mingle.state import MergeRun

from ..backbones.families import FAMILIES, TASKS


class Case:
    def __init__(self, name, root):
        family = FAMILIES[name]
        family.write(root)
        self.root, self.family = root, family
        self.backbone = BACKBONES.get(family.backbone)()
        self.base = Base(self.backbone, self.backbone.open(root / "base"))

    @cached_property
    def batch(self):
        return self.backbone.prepare(self.family.samples(3, 6), self.base.checkpoint)

    def opened(self, task):
        return self.backbone.open(self.root / task, self.base.checkpoint)

    def run(self, path, method="mingle", **options):
        run = MergeRun.create(
            path, self.root / "base", method=method, backbone=self.family.backbone, options=options
        )
        for seed, task in enumerate(TASKS):
            seeds = self.family.samples(10 + seed, 12) if method == "mingle" else None
            run.add(self.root / task, seeds=seeds)
        return run


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("family"))


def open_gates(model, layers):
    """Random experts and gates at every site, each its own."""
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        out, into = len(layer.B), layer.A.shape[1]
        factors = [0.2 * torch.randn(shape, generator=generator) for shape in ((4, into), (out, 4))]
        layer.extend([LowRankExpert(*factors)])
        layer.gate.append(torch.randn(into, generator=generator), torch.tensor(0.5))
    return model


def test_every_family_is_here():
    assert {family.backbone for family in FAMILIES.values()} == set(BACKBONES.names())


@torch.no_grad()
def test_linears_of_a_group_read_the_same_tensor_and_only_they(case):
    model = case.base.model()
    groups = case.backbone.groups(model, "full")
    assert case.backbone.groups(case.backbone.skeleton(case.base.checkpoint), "full") == groups
    seen, made = {}, {}
    for group in groups:
        for name in group.linears:
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.__setitem__(name, args[0])
            )
        if group.norm is not None:
            model.get_submodule(group.norm).register_forward_hook(
                lambda _, args, output, name=group.name: made.__setitem__(name, output)
            )
    case.backbone.features(model, case.batch)
    assert len(seen) == sum(len(group.linears) for group in groups) > 0
    for group in groups:
        assert all(seen[name] is seen[group.name] for name in group.linears)
    assert len({id(x) for x in seen.values()}) == len(groups)
    assert all(made[name] is seen[name] for name in made)


@torch.no_grad()
def test_a_model_without_experts_is_the_base(case):
    model = case.base.model()
    expected = case.backbone.features(model, case.batch)
    layers = wrap(model, case.backbone.groups(model, "full"))
    assert torch.equal(case.backbone.features(model, case.batch), expected)
    found = case.backbone.features(open_gates(model, layers), case.batch)
    assert found.shape != expected.shape or not torch.equal(found, expected)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(case):
    model = Base(case.backbone, case.base.checkpoint, torch.float64).model()
    open_gates(model, wrap(model, case.backbone.groups(model, "full")))
    batch = {name: x.double() if x.is_floating_point() else x for name, x in case.batch.items()}
    together = case.backbone.features(model, batch)
    for index, part in enumerate(split(batch, 1)):
        alone = case.backbone.features(model, part)[0].double()
        wide = max(len(alone), together.shape[1])
        both = [torch.nn.functional.pad(x.double(), (0, wide - len(x))) for x in (alone, together[index])]
        torch.testing.assert_close(*both, atol=1e-10, rtol=0)


@torch.no_grad()
def test_pools_know_nothing_after_a_pass(case):
    model = case.base.model()
    layers = wrap(model, case.backbone.groups(model, "full"))
    case.backbone.features(model, case.batch)
    assert all(layer.pool.mask is None and layer.pool.samples is None for layer in layers.values())


def test_a_run_is_made_of_bits(case, tmp_path):
    quick = {"steps": 2, "rank": 4, "seeds_in_all": 8, "lr": 0.01}
    samples = case.family.samples(4, 5)
    found = []
    for name in ("one", "two"):
        case.run(tmp_path / name, **quick)
        reopened = MergeRun.open(tmp_path / name)
        found.append([reopened.predict(samples, task)[0] for task in TASKS])
        assert reopened.info("task2")["report"]["energy"]["kept"] > 0
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert all(probabilities.shape[0] == 5 for probabilities in found[0])


def test_weights_are_averaged(case, tmp_path):
    run = case.run(tmp_path / "average", method="average")
    state = run.model().state_dict()
    tasks = [case.opened(task) for task in TASKS]
    for name in tasks[0].names():
        mean = sum(task.tensor(name) for task in tasks) / 2
        torch.testing.assert_close(state[name], mean, atol=1e-6, rtol=0)
    samples = case.family.samples(4, 5)
    assert torch.equal(run.predict(samples, "task1")[0], run.predict(samples, "task1")[0])


def test_a_checkpoint_of_another_family_is_refused(case, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gru"}')
    (folder / "model.safetensors").write_bytes((case.root / "task1" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"expected a .*found 'gru'"):
        case.backbone.check_family(case.backbone.open(folder), case.base.checkpoint)


def test_a_base_of_another_family_names_the_one_that_reads_it(case, tmp_path):
    others = {"swin": "image_classifier", "mt5": None, "deberta-v2": "text_classifier"}
    for kind, reader in others.items():
        if kind in case.backbone.model_types:
            continue
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        (tmp_path / "model.safetensors").write_bytes((case.root / "task1" / "model.safetensors").read_bytes())
        what = f"pass backbone='{reader}'" if reader else "no family that is installed reads it"
        with pytest.raises(CheckpointError, match=f"found '{kind}'; {what}"):
            case.backbone.check_family(case.backbone.open(tmp_path))


def test_samples_are_cut_like_any_other_batch(case):
    assert all(len(tensor) == 2 for tensor in take(case.batch, slice(0, 2)).values())
