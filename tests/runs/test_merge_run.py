"""A run is stopped, continued, undone, moved and killed without losing a bit."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import mingle
from mingle.errors import (
    CheckpointError,
    ConfigError,
    MismatchError,
    RunLockedError,
    SeedsError,
    TaskExistsError,
    UnknownNameError,
)
from mingle.state.run_folder import RunFolder

OPTIONS = {"steps": 4, "rank": 4}
TASKS = ("task1", "task2", "task3")


def start(path, zoo, **changes):
    return mingle.MergeRun.create(path, zoo / "base", options={**OPTIONS, **changes})


def files_of(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*.safetensors"))}


def add_in_child(path, zoo, task, images):
    torch.set_num_threads(1)
    mingle.MergeRun.open(path).add(zoo / task, seeds=images)


def in_other_process(target, *args):
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_stopped_and_continued_by_another_process_gives_the_same_bits(tmp_path, zoo, images):
    whole = start(tmp_path / "whole", zoo)
    for task in TASKS:
        whole.add(zoo / task, seeds=images)
    start(tmp_path / "parts", zoo).add(zoo / "task1", seeds=images)
    in_other_process(add_in_child, tmp_path / "parts", zoo, "task2", images)
    mingle.MergeRun.open(tmp_path / "parts").add(zoo / "task3", seeds=images)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    one, two = (mingle.MergeRun.open(tmp_path / name).model() for name in ("whole", "parts"))
    pixels = torch.randn(3, 3, 16, 16)
    assert torch.equal(one(pixels).image_embeds, two(pixels).image_embeds)


def test_undo_gives_back_the_model_before(tmp_path, zoo, images):
    run = start(tmp_path / "run", zoo)
    run.add(zoo / "task1", seeds=images)
    before, stored = run.model().state_dict(), files_of(tmp_path / "run")
    run.add(zoo / "task2", seeds=images)
    assert run.tasks == ("task1", "task2")
    assert run.undo() == "task2"
    assert mingle.MergeRun.open(tmp_path / "run").tasks == ("task1",)
    assert files_of(tmp_path / "run") == stored
    after = run.model().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run.add(zoo / "task2", seeds=images)
    assert run.verify() == []


def test_model_of_an_earlier_step(tmp_path, zoo, images):
    run = start(tmp_path / "run", zoo)
    run.add(zoo / "task1", seeds=images)
    pixels = torch.randn(2, 3, 16, 16)
    first = run.model()(pixels).image_embeds
    run.add(zoo / "task2", seeds=images)
    assert torch.equal(run.model(steps=1)(pixels).image_embeds, first)
    assert not torch.equal(run.model()(pixels).image_embeds, first)


def test_run_and_base_may_move_together(tmp_path, zoo, images):
    shutil.copytree(zoo, tmp_path / "here" / "zoo")
    run = start(tmp_path / "here" / "run", tmp_path / "here" / "zoo")
    run.add(zoo / "task1", seeds=images)
    (tmp_path / "here").rename(tmp_path / "there")
    assert mingle.MergeRun.open(tmp_path / "there" / "run").model() is not None
    (tmp_path / "there" / "zoo").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="if it has moved"):
        mingle.MergeRun.open(tmp_path / "there" / "run").model()
    moved = mingle.MergeRun.open(tmp_path / "there" / "run", base=tmp_path / "elsewhere" / "base")
    moved.add(zoo / "task2", seeds=images)
    assert moved.tasks == ("task1", "task2")


def test_another_base_is_refused(tmp_path, zoo, images):
    run = start(tmp_path / "run", zoo)
    run.add(zoo / "task1", seeds=images)
    with pytest.raises(CheckpointError, match=r"not the base of .* expected fingerprint"):
        mingle.MergeRun.open(tmp_path / "run", base=zoo / "task2").model()


def test_a_stored_source_that_no_path_can_be(tmp_path, zoo):
    header = dict(start(tmp_path / "run", zoo).header)
    RunFolder.create(tmp_path / "long", header | {"base": {**header["base"], "source": "x" * 300}})
    with pytest.raises(CheckpointError, match=r"base of .*xxx.*pass base="):
        mingle.MergeRun.open(tmp_path / "long").model()


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "pretrained", "individual"])
def test_every_method_survives_reopening(tmp_path, zoo, method):
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=method)
    for task in TASKS[:2]:
        run.add(zoo / task)
    task = "task1" if run.method.needs_task else None
    pixels = torch.randn(2, 3, 16, 16)
    reopened = mingle.MergeRun.open(tmp_path / "run")
    assert torch.equal(
        run.model(task=task)(pixels).image_embeds, reopened.model(task=task)(pixels).image_embeds
    )


def test_predict(tmp_path, zoo, images):
    run = start(tmp_path / "run", zoo)
    run.add(zoo / "task1", seeds=images)
    probabilities, classes = run.predict(images[:5], "task1")
    assert classes == ("class0", "class1", "class2", "class3")
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))
    alone, _ = run.predict(images[2:3], "task1")
    torch.testing.assert_close(alone[0], probabilities[2], atol=1e-6, rtol=0)


class TestBadInputChangesNothing:
    """One clear error each, and the run stays as it was."""

    @pytest.fixture
    def run(self, tmp_path, zoo, images):
        run = start(tmp_path / "run", zoo)
        run.add(zoo / "task1", seeds=images)
        stored = files_of(tmp_path / "run"), (tmp_path / "run" / "mingle.json").read_bytes()
        yield run
        assert (files_of(tmp_path / "run"), (tmp_path / "run" / "mingle.json").read_bytes()) == stored
        assert mingle.MergeRun.open(tmp_path / "run").verify() == []

    def changed(self, zoo, target, change):
        shutil.copytree(zoo / "task2", target)
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors")
        return target

    def test_every_mismatch_is_listed(self, run, zoo, images, tmp_path):
        fc1 = "vision_model.encoder.layers.0.mlp.fc1.weight"
        out = "vision_model.encoder.layers.1.self_attn.out_proj.bias"
        q = "vision_model.encoder.layers.1.self_attn.q_proj.weight"

        def change(tensors):
            tensors[fc1] = torch.zeros(5, 7)
            del tensors[out]
            tensors["vision_model.surprise"] = torch.zeros(1)
            tensors[q][0, 0] = float("nan")

        bad = self.changed(zoo, tmp_path / "bad", change)
        with pytest.raises(MismatchError) as caught:
            run.add(bad, seeds=images)
        assert len(caught.value.problems) == 4
        text = str(caught.value)
        for part in (
            str(bad),
            fc1,
            "5×7",
            "48×32",
            out,
            "missing",
            "surprise",
            "unexpected",
            q,
            "1 non-finite",
        ):
            assert part in text

    def test_truncated(self, run, zoo, images, tmp_path):
        shutil.copytree(zoo / "task2", tmp_path / "bad")
        data = (tmp_path / "bad" / "model.safetensors").read_bytes()
        (tmp_path / "bad" / "model.safetensors").write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
            run.add(tmp_path / "bad", seeds=images)

    def test_pickle(self, run, zoo, images, tmp_path):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        with pytest.raises(CheckpointError, match="pickle can run code"):
            run.add(tmp_path / "bad", seeds=images)

    def test_other_architecture(self, run, images, tmp_path):
        (tmp_path / "bert").mkdir()
        save_file({"bert.encoder.weight": torch.zeros(3)}, tmp_path / "bert" / "model.safetensors")
        (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(CheckpointError, match=r"expected a CLIP .* found 'bert'"):
            run.add(tmp_path / "bert", seeds=images)

    def test_other_tensors(self, run, images, tmp_path):
        (tmp_path / "bad").mkdir()
        save_file({"bert.encoder.weight": torch.zeros(3)}, tmp_path / "bad" / "model.safetensors")
        with pytest.raises(MismatchError, match=r"bert\.encoder\.weight: unexpected"):
            run.add(tmp_path / "bad", seeds=images)

    def test_duplicate_task(self, run, zoo, images):
        with pytest.raises(TaskExistsError, match="'task1' is already merged"):
            run.add(zoo / "task1", seeds=images)

    def test_no_seeds(self, run, zoo):
        with pytest.raises(SeedsError, match="none were given"):
            run.add(zoo / "task2")

    def test_empty_seeds(self, run, zoo, images, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(SeedsError, match="no samples found"):
            run.add(zoo / "task2", seeds=tmp_path / "empty")
        with pytest.raises(SeedsError, match="no samples found"):
            run.add(zoo / "task2", seeds=images[:0])

    def test_seeds_of_the_wrong_size(self, run, zoo):
        with pytest.raises(SeedsError, match=r"\(N, 3, 16, 16\), found \(4, 3, 8, 8\)"):
            run.add(zoo / "task2", seeds=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))

    def test_label_balanced_seeds_without_labels(self, tmp_path, zoo, images, run):
        other = start(tmp_path / "other", zoo, seeds="label")
        with pytest.raises(SeedsError, match="needs labels"):
            other.add(zoo / "task1", seeds=images)

    def test_illegal_name(self, run, zoo, images):
        with pytest.raises(mingle.MingleError, match="task name"):
            run.add(zoo / "task2", name="../evil", seeds=images)

    def test_full_disk(self, run, zoo, images, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(mingle.MingleError, match="No space left"):
            run.add(zoo / "task2", seeds=images)

    def test_locked(self, run, zoo, images):
        context = multiprocessing.get_context("fork")
        held, release = context.Event(), context.Event()

        def hold():
            with mingle.MergeRun.open(run.path).lock():
                held.set()
                release.wait(30)

        process = context.Process(target=hold)
        process.start()
        try:
            assert held.wait(30)
            with pytest.raises(RunLockedError, match=str(process.pid)):
                run.add(zoo / "task2", seeds=images)
        finally:
            release.set()
            process.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mingel"}, "unknown method 'mingel'; did you mean mingle"),
        ({"preset": "papper"}, "unknown preset 'papper'; did you mean paper"),
        ({"options": {"rnak": 3}}, "unknown option 'rnak'; did you mean 'rank'"),
        ({"options": {"rank": "many"}}, "option 'rank'"),
        ({"options": {"sites": "fulll"}}, "unknown sites 'fulll'; did you mean full"),
        ({"backbone": "clop"}, "unknown backbone 'clop'; did you mean clip"),
    ],
)
def test_wrong_names_offer_the_right_ones(tmp_path, zoo, arguments, message):
    with pytest.raises(ConfigError, match=message):
        mingle.MergeRun.create(tmp_path / "run", zoo / "base", **arguments)
    assert not (tmp_path / "run" / "mingle.json").exists()


def test_unknown_task(tmp_path, zoo, images):
    run = start(tmp_path / "run", zoo)
    run.add(zoo / "task1", seeds=images)
    with pytest.raises(UnknownNameError, match="did you mean task1"):
        run.predict(images[:1], "task11")


def add_forever(path, zoo, images):
    torch.set_num_threads(1)
    run = mingle.MergeRun.open(path)
    for number in range(1000):
        run.add(zoo / "task2", name=f"again{number}", seeds=images)


def test_kill_at_random_moments_leaves_a_whole_run(tmp_path, zoo, images):
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", options={"steps": 1, "rank": 2})
    run.add(zoo / "task1", seeds=images)
    moments = random.Random(0)
    for _ in range(6):
        before = mingle.MergeRun.open(tmp_path / "run")
        stored = files_of(tmp_path / "run")
        named = {p: b for p, b in stored.items() if p.parts[1].split("-", 1)[1] in before.tasks}
        process = multiprocessing.get_context("fork").Process(
            target=add_forever, args=(tmp_path / "run", zoo, images)
        )
        process.start()
        time.sleep(moments.uniform(0.05, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        after = mingle.MergeRun.open(tmp_path / "run")
        assert after.verify() == []
        assert after.tasks[: len(before.tasks)] == before.tasks
        now = files_of(tmp_path / "run")
        assert all(now[path] == content for path, content in named.items())
        assert after.model() is not None
    after.add(zoo / "task3", seeds=images)
    assert mingle.MergeRun.open(tmp_path / "run").tasks[-1] == "task3"


class TestHead:
    """A class head may come beside the checkpoint, as a file, or as a tensor."""

    def bare(self, zoo, tmp_path):
        shutil.copytree(zoo / "task1", tmp_path / "bare")
        return tmp_path / "bare", (tmp_path / "bare" / "head.safetensors").rename(
            tmp_path / "given.safetensors"
        )

    def test_given_as_file_or_tensor_equals_the_one_beside(self, tmp_path, zoo, images):
        checkpoint, file = self.bare(zoo, tmp_path)
        expected = start(tmp_path / "beside", zoo)
        expected.add(zoo / "task1", seeds=images)
        from_file = start(tmp_path / "file", zoo)
        from_file.add(checkpoint, name="task1", seeds=images, head=file)
        assert files_of(tmp_path / "file") == files_of(tmp_path / "beside")
        from_tensor = start(tmp_path / "tensor", zoo)
        embeddings = load_file(file)["class_embeddings"]
        from_tensor.add(checkpoint, name="task1", seeds=images, head=embeddings)
        stored = load_file(next((tmp_path / "tensor").rglob("head.safetensors")))
        assert torch.equal(stored["class_embeddings"], embeddings)

    def test_missing_or_wrong(self, tmp_path, zoo, images):
        checkpoint, _ = self.bare(zoo, tmp_path)
        run = start(tmp_path / "run", zoo)
        with pytest.raises(CheckpointError, match="no class head found"):
            run.add(checkpoint, seeds=images)
        with pytest.raises(CheckpointError, match=r"3 class embeddings, but id2label .* names 4"):
            run.add(checkpoint, seeds=images, head=torch.zeros(3, 24))
        with pytest.raises(CheckpointError, match="expected a tensor 'class_embeddings'"):
            run.add(checkpoint, seeds=images, head=torch.zeros(24))
        assert run.tasks == ()


@pytest.mark.parametrize("method", ["mingle", "average"])
def test_changing_the_model_that_was_taken_out_changes_nothing_else(tmp_path, zoo, images, method):
    options = OPTIONS if method == "mingle" else {}
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=method, options=options)
    run.add(zoo / "task1", seeds=images)
    pixels = torch.randn(2, 3, 16, 16)
    expected = run.model()(pixels).image_embeds
    taken = run.model()
    with torch.no_grad():
        for tensor in (*taken.parameters(), *taken.buffers()):
            tensor.zero_()
    assert torch.equal(run.model()(pixels).image_embeds, expected)
    run.add(zoo / "task2", seeds=images)
    assert torch.equal(run.model(steps=1)(pixels).image_embeds, expected)


def test_folders_that_are_not_named_like_classes_are_just_folders(tmp_path, zoo, images):
    from PIL import Image

    for number, image in enumerate(images[:8]):
        folder = tmp_path / "photos" / f"day{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    run = start(tmp_path / "run", zoo)
    step = run.add(zoo / "task1", seeds=tmp_path / "photos")
    assert step.report["seeds"]["pool"] == 8
