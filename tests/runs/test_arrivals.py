"""What arrives is looked at before anything is computed, and taken in the forms that people have it in."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mingle
from mingle.errors import CheckpointError, MismatchError, RunError, SeedsError
from mingle.state import merge_run


@pytest.fixture
def run(tmp_path, zoo):
    return mingle.MergeRun.create(tmp_path / "run", zoo / "base", options={"steps": 2, "rank": 4})


def copied(zoo, target, config=None, tensors=None):
    shutil.copytree(zoo / "task1", target)
    if config:
        stored = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(stored | config))
    if tensors:
        save_file(tensors(load_file(target / "model.safetensors")), target / "model.safetensors")
    return target


def test_checkpoint_of_another_base_with_the_same_shapes(run, zoo, images, tmp_path):
    other = copied(zoo, tmp_path / "other", tensors=lambda t: {k: torch.randn_like(v) for k, v in t.items()})
    with pytest.raises(MismatchError, match=r"cosine .* fine-tuned from another base"):
        run.add(other, seeds=images)
    assert run.tasks == ()


@pytest.mark.parametrize("change", [{"num_attention_heads": 2}, {"hidden_act": "gelu"}, {"patch_size": 4}])
def test_configuration_that_differs_from_the_base(run, zoo, images, tmp_path, change):
    with pytest.raises(CheckpointError, match=next(iter(change))):
        run.add(copied(zoo, tmp_path / "other", config=change), seeds=images)


def test_base_with_nan_is_refused_at_the_start(tmp_path, zoo):
    shutil.copytree(zoo / "base", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight: 1 non-finite"):
        mingle.MergeRun.create(tmp_path / "run", tmp_path / "base", method="average")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", [torch.zeros(4, 5), torch.full((4, 24), float("nan"))])
@pytest.mark.parametrize("method", ["mingle", "average"])
def test_head_that_cannot_classify(tmp_path, zoo, images, head, method):
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=method)
    with pytest.raises(CheckpointError, match="expected finite class embeddings of dimension 24"):
        run.add(zoo / "task1", seeds=images, head=head)
    assert run.tasks == ()


def test_class_names_from_the_head_file(run, zoo, images, tmp_path):
    names = ["cat", "dog", "cow"]
    file = tmp_path / "head.safetensors"
    save_file({"class_embeddings": torch.randn(3, 24)}, file, metadata={"classes": json.dumps(names)})
    run.add(zoo / "task1", seeds=images, head=file)
    assert run.predict(images[:1], "task1")[1] == tuple(names)


def test_refusals_come_before_the_work(run, zoo, images):
    seen = []
    other = mingle.MergeRun.open(run.path)
    other.add(zoo / "task2", seeds=images)
    with pytest.raises(RunError, match="task name"):
        other.add(zoo / "task1", name="my flags", seeds=images, progress=lambda *a: seen.append(a))
    with pytest.raises(RunError, match="changed by another process"):
        run.add(zoo / "task1", seeds=images, progress=lambda *a: seen.append(a))
    assert seen == []


def test_seeds_in_every_form_give_the_same_step(tmp_path, zoo, images):
    folder = tmp_path / "images"
    folder.mkdir()
    files = []
    for number, image in enumerate(images):
        files.append(folder / f"{number:02}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    (folder / "._hidden.png").write_bytes(b"not an image")
    np.savez(tmp_path / "seeds.npz", images=images.numpy().astype(np.int64))
    forms = [
        images,
        images.numpy(),
        images.long(),
        folder,
        files,
        [Image.open(f) for f in files],
        tmp_path / "seeds.npz",
    ]
    stored = set()
    for number, seeds in enumerate(forms):
        run = mingle.MergeRun.create(tmp_path / f"run{number}", zoo / "base", options={"steps": 2, "rank": 4})
        run.add(zoo / "task1", seeds=seeds)
        router = load_file(next(run.path.rglob("router.safetensors")))
        stored.add(round(float(sum(t.abs().sum() for name, t in router.items() if "mean" in name)), 4))
    assert len(stored) == 1


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (torch.rand(4, 3, 16, 16), "not normalised"),
        (torch.full((4, 3, 16, 16), float("inf")), "finite"),
        (torch.full((4, 3, 16, 16), 256), "0…255, found 256"),
        ([1, 2], "found list"),
        (3.5, "found float"),
    ],
)
def test_seeds_that_are_no_images(run, zoo, seeds, message):
    with pytest.raises(SeedsError, match=message):
        run.add(zoo / "task1", seeds=seeds)


def test_large_folders_are_not_read_whole(run, zoo, images, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    monkeypatch.setattr(merge_run, "POOL_LIMIT", 12)
    monkeypatch.setattr(merge_run, "SAMPLES_PER_CLASS", 2)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(path) or original(path, **how))
    assert run.add(zoo / "task1", seeds=folder).report["seeds"]["pool"] == 12
    assert len(set(opened)) == 12


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_adding_works_whatever_gradient_mode_the_caller_is_in(run, zoo, images, mode):
    with mode():
        run.add(zoo / "task1", seeds=images)
    assert run.tasks == ("task1",)


@pytest.mark.parametrize("wrong", [4, -1])
@pytest.mark.parametrize("method", ["mingle", "mingle_seq"])
def test_labels_that_the_head_does_not_have(tmp_path, zoo, images, wrong, method):
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=method)
    labels = torch.arange(40) % 4
    labels[7] = wrong
    with pytest.raises(CheckpointError, match=r"labels -?\d…\d, but the head has 4 classes"):
        run.add(zoo / "task1", seeds=images, labels=labels)
    assert run.tasks == ()
