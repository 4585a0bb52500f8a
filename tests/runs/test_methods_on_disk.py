"""Every method: a run that is opened anew before each task holds the bits of one that never left memory."""

import pytest
import torch

import mingle
from mingle.methods import METHODS, Arrival, SeedPool

QUICK = {"steps": 3, "rank": 4}
CASES = [(name, "default") for name in METHODS.names()] + [("mingle", "ablation_adaptation")]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_opened_anew_before_each_task_it_holds_the_same_bits(tmp_path, base, zoo, images, name, preset):
    labels = torch.arange(40) % 4
    options = {k: v for k, v in QUICK.items() if k in METHODS.get(name).options_type.model_fields}
    method = METHODS.get(name).with_preset(preset, options)
    pool = SeedPool(base.backbone.prepare(images, base.checkpoint), labels)
    mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=name, preset=preset, options=options)
    state = method.init(base)
    for task in ("task1", "task2", "task3"):
        checkpoint = base.backbone.open(zoo / task)
        head = base.backbone.head(checkpoint)
        state = method.update(state, Arrival(task, checkpoint, head, pool, seed=42))
        mingle.MergeRun.open(tmp_path / "run").add(zoo / task, seeds=images, labels=labels)
    stored = mingle.MergeRun.open(tmp_path / "run").state
    for one, two in zip(stored.steps, state.steps, strict=True):
        kept = {stem: tensors for stem, tensors in two.tensors.items() if tensors}
        assert set(one.tensors) == set(kept)
        for stem, tensors in kept.items():
            assert one.tensors[stem].keys() == tensors.keys()
            assert all(torch.equal(one.tensors[stem][key], tensor) for key, tensor in tensors.items())


def test_a_method_that_trains_on_labels_gets_all_of_them(tmp_path, zoo, images, monkeypatch):
    monkeypatch.setattr("mingle.state.merge_run.POOL_LIMIT", 12)
    monkeypatch.setattr("mingle.state.merge_run.SAMPLES_PER_CLASS", 3)
    labels = torch.arange(40) % 4
    used = {}
    for method in ("sequential", "adamerging"):
        run = mingle.MergeRun.create(tmp_path / method, zoo / "base", method=method, options={"steps": 1})
        used[method] = run.add(zoo / "task1", seeds=images, labels=labels[:None]).report["seeds"]["pool"]
    assert used == {"sequential": 40, "adamerging": 12}
