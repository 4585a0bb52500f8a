"""The command line as a user meets it: real processes of the same program, exit codes, one-line errors."""

import json
import os
import re
import shutil
import threading

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mingle.backbones.clip import Clip
from mingle.state import MergeRun

from ..backbones.whole_clip import write_clip
from ..conftest import perturbed


@pytest.fixture
def seeds(tmp_path, images):
    path = tmp_path / "seeds.safetensors"
    save_file({"images": images}, path)
    return path


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("options: {steps: 2, rank: 4}\nseed: 7\n")
    return path


@pytest.fixture
def run(tmp_path, zoo, call, config, seeds):
    """A run with two tasks, made through the command line."""
    folder = tmp_path / "run"
    assert call("init", folder, "--base", zoo / "base", "--method", "mingle", "--config", config)[0] == 0
    for task in ("task1", "task2"):
        assert call("add", folder, zoo / task, "--seeds", seeds)[0] == 0
    return folder


@pytest.fixture
def whole(tmp_path):
    """A whole CLIP, and a fine-tuning of its vision tower without a head."""
    write_clip(tmp_path / "whole")
    tuned = shutil.copytree(tmp_path / "whole", tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    vision = {name: t for name, t in tensors.items() if name.startswith("vision_model.")}
    save_file(tensors | perturbed(vision, 1), tuned / "model.safetensors")
    return tmp_path / "whole", tuned


def test_head_out_of_class_names(call, tmp_path, whole, config, seeds):
    base, tuned = whole
    assert call("init", tmp_path / "run", "--base", base, "--config", config)[0] == 0
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "prompts.json").write_text('["a {}.", "the {}"]')
    names = ("--classes", tmp_path / "classes.txt", "--templates", tmp_path / "prompts.json")
    code, _, err = call("add", tmp_path / "run", tuned, "--seeds", seeds, "--head", "h.safetensors", *names)
    assert code == 2
    assert "expected one of the two, found both" in err
    code, _, err = call("add", tmp_path / "run", tuned, "--seeds", seeds, "--classes", tmp_path / "none.txt")
    assert code == 2
    assert f"{tmp_path}/none.txt: not a readable file of names" in err
    assert call("add", tmp_path / "run", tuned, "--seeds", seeds, *names)[0] == 0
    head = MergeRun.open(tmp_path / "run").state.steps[0].head
    backbone = Clip()
    expected = backbone.zero_shot_head(backbone.open(base), ["cat", "dog", "bird"], ["a {}.", "the {}"])
    assert head.classes == ("cat", "dog", "bird")
    assert torch.equal(head.tensors["class_embeddings"], expected.tensors["class_embeddings"])


def test_a_whole_session(call, run, zoo, tmp_path, images):
    code, out, _ = call("log", run)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["task1", "task2"]
    code, out, _ = call("show", run)
    assert code == 0
    assert "tasks     task1, task2" in out
    assert "rank 4" in out
    assert "seed 7" in out
    code, out, _ = call("show", run, "task2")
    assert "kept" in out
    assert re.search(
        r"^overlap     of what its experts read, .*task1 \d+% \(chance \d+%\)", out, re.MULTILINE
    )
    assert re.search(r"^router      gates on its seeds: task\d \d+%, task\d \d+%", out, re.MULTILINE)
    assert call("verify", run)[:2] == (0, f"{run}: whole, every file matches its hash\n")
    code, out, _ = call("undo", run)
    assert (code, out) == (0, "task2: undone; left: task1\n")
    image = tmp_path / "seven.png"
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(image)
    code, out, _ = call("predict", run, "--task", "task1", image)
    assert code == 0
    assert "class" in out


def test_json_is_json(call, run, shared_suite):
    for arguments in (["log"], ["show"], ["verify"], ["eval", "--suite", shared_suite], ["undo"]):
        code, out, _ = call(arguments[0], run, *arguments[1:], "--json")
        assert code == 0
        assert json.loads(out)


def test_eval_prints_matrix_and_metrics(call, run, shared_suite):
    code, out, _ = call("eval", run, "--suite", shared_suite)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if " + task" in line]
    assert [len(row) for row in rows] == [4, 5]
    for name in ("ACC", "BWT", "FWT", "normalised ACC", "mixed ACC", "rank 4"):
        assert name in out
    result = json.loads(call("eval", run, "--suite", shared_suite, "--json")[1])
    last = result["matrix"][-1]
    assert result["metrics"]["acc"] == pytest.approx(sum(last) / 2)
    assert f"ACC {100 * result['metrics']['acc']:.1f}" in out


def test_undo_of_eval_limit(call, run, shared_suite):
    result = json.loads(call("eval", run, "--suite", shared_suite, "--samples", "8", "--json")[1])
    assert all((8 * a).is_integer() for row in result["matrix"] for a in row)


def test_verify_names_the_damaged_file(call, run):
    path = next(run.glob("steps/0001-*/experts.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, out, _ = call("verify", run)
    assert code == 1
    assert "experts.safetensors" in out
    path.write_bytes(data[:-5])
    code, out, err = call("verify", run)
    assert code == 1
    assert "experts.safetensors" in out + err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("init", "new", "--base", "BASE", "--method", "mingel"), 2, "did you mean mingle"),
        (("init", "new", "--base", "BASE", "--preset", "referense"), 2, "did you mean reference"),
        (("init", "new", "--base", "nowhere"), 1, "no such folder or file"),
        (("init", "new", "--base", "glyph9:base"), 2, "did you mean glyph8"),
        (("add", "RUN", "nowhere"), 1, "no such folder or file"),
        (("add", "RUN", "glyph8:mnits"), 2, "did you mean mnist?"),
        (("log", "nowhere"), 1, "not a run"),
        (("predict", "RUN", "--task", "task1", "x.png"), 1, "x.png"),
        (("predict", "RUN", "--task", "task11", "x.png"), 2, "did you mean task1"),
        (("predict", "RUN", "--task", "task1", "a text"), 1, "expected pictures, found texts"),
        (("eval", "RUN", "--suite", "glyph88"), 2, "did you mean glyph8"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(call, run, zoo, arguments, code, message):
    places = {"BASE": zoo / "base", "RUN": run}
    found, _, err = call(*(places.get(a, a) for a in arguments))
    assert found == code
    assert message in err
    assert "Traceback" not in err
    if message != "No such command":
        assert err.startswith("mingle: ")
        assert err.count("\n") == 1


def test_unknown_key_in_the_configuration(call, zoo, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("methd: mingle\n")
    code, _, err = call("init", tmp_path / "run", "--base", zoo / "base", "--config", path)
    assert code == 2
    assert "config.yaml: unknown option 'methd'; did you mean 'method'?" in err


@pytest.mark.parametrize(
    "command", ["init", "add", "log", "show", "verify", "undo", "eval", "predict", "demo", "report"]
)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: mingle {command}" in out


def test_help_does_not_wait_for_torch():
    import subprocess
    import sys

    program = (
        "import sys; import mingle.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_convert(call, tmp_path):
    old = tmp_path / "old" / "pytorch_model.bin"
    old.parent.mkdir()
    (old.parent / "config.json").write_text("{}")
    tied = torch.ones(2, 2)
    torch.save({"state_dict": {"a": tied, "b": tied}, "epoch": 3}, old)
    code, out, err = call("convert", old, tmp_path / "new", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["key"] == "state_dict"
    assert found["shared"] == {"b": "a"}
    assert found["copied"] == ["config.json"]
    assert torch.equal(load_file(tmp_path / "new" / "model.safetensors")["a"], tied)
    code, out, _ = call("convert", old)
    assert code == 0
    assert f"{tmp_path / 'old'}: model.safetensors (1 tensors, " in out
    assert "stored once  b = a" in out
    code, _, err = call("convert", old)
    assert code == 1
    assert err.startswith(f"mingle: {tmp_path}/old/model.safetensors: already there; open that")
    assert "restricted unpickler" in call("convert", "--help")[1]


def test_waiting_for_another_writer(call, run, zoo, seeds):
    """Who waits is told for whom, and goes on with the run as it is then; who gives up is told so."""
    held, release = threading.Event(), threading.Event()

    def write():
        opened = MergeRun.open(run)
        with opened.lock():
            held.set()
            release.wait(30)
            opened.undo()

    other = threading.Thread(target=write)
    other.start()
    assert held.wait(30)
    says = f"mingle: {run}: process {os.getpid()} on "
    for command in (("undo", run), ("add", run, zoo / "task3", "--seeds", seeds)):
        code, out, err = call(*command)
        assert (code, out) == (1, "")
        assert err.startswith(says)
        assert "waiting for" not in err
    code, _, err = call("undo", run, "--wait", 0.1)
    assert code == 1
    first, second = err.splitlines()
    assert first.startswith(says)
    assert first.endswith("waiting for up to 0.1 s")
    assert second.startswith(says)
    assert "(waited 0.1 s); wait until that is done" in second
    threading.Timer(0.3, release.set).start()
    code, out, err = call("undo", run, "--wait", 60)
    other.join()
    assert (code, out) == (0, "task1: undone; left: none\n")
    assert "waiting for up to 60 s" in err


def test_a_budget_is_kept_and_shown(call, tmp_path, zoo, config, seeds):
    folder, start = tmp_path / "bound", ("--base", zoo / "base", "--config", config)
    code, out, _ = call("init", folder, *start, "--budget", "6")
    assert code == 0
    assert "rank 4" in out
    assert "budget 6" in out
    assert "ranks per Linear" not in call("show", folder)[1]
    for task in ("task1", "task2"):
        assert call("add", folder, zoo / task, "--seeds", seeds)[0] == 0
    stored = json.loads(call("show", folder, "task2", "--json")[1])["report"]["budget"]
    kept = {task: f"{task} {count / 12:.1f}" for task, count in stored["ranks"].items()}
    for arguments in ((), ("task2",)):
        out = call("show", folder, *arguments)[1]
        assert (
            f"budget      ranks per Linear: {kept['task1']}, {kept['task2']}; of ‖θi − θ0‖² given up" in out
        )
    assert call("init", tmp_path / "a", *start, "--budget", "6GB")[0] == 2
    code, _, err = call("init", tmp_path / "b", "--base", zoo / "base", "--method", "ties", "--budget", "6")
    assert code == 2
    assert "method 'ties': unknown option 'budget'" in err


def test_experts_that_joined_are_counted(call, tmp_path, zoo):
    folder = tmp_path / "made"
    assert call("init", folder, "--base", zoo / "base", "--method", "made_it")[0] == 0
    for task in ("task1", "task2"):
        assert call("add", folder, zoo / task)[0] == 0
    merging = json.loads(call("show", folder, "task2", "--json")[1])["report"]["merging"]
    joined, least = len(merging["joined"]), merging["threshold"]
    said = f"merging     {joined} of 12 experts joined an earlier one (affinity of {least:.2f} or more); "
    assert f"{said}{24 - joined} in use\n" in call("show", folder, "task2")[1]
    said = "merging     0 of 12 experts joined an earlier one; 12 in use\n"
    assert said in call("show", folder, "task1")[1]


def test_a_router_says_whom_the_seeds_resemble(call, tmp_path, zoo, config, seeds):
    folder = tmp_path / "routed"
    config.write_text("options:\n  gates: analytic\n  rank: 4\n")
    assert call("init", folder, "--base", zoo / "base", "--config", config)[0] == 0
    for task in ("task1", "task2"):
        assert call("add", folder, zoo / task, "--seeds", seeds)[0] == 0
    stored = json.loads(call("show", folder, "task2", "--json")[1])["report"]["router"]["gates_on_seeds"]
    largest, other = sorted(stored, key=stored.get, reverse=True)
    said = f"router      gates on its seeds: {largest} {stored[largest]:.0%}, {other} {stored[other]:.0%}\n"
    assert said in call("show", folder, "task2")[1]


def test_seeds_that_do_not_look_right_are_warned_of_and_merged(call, tmp_path, zoo, config):
    folder, seeds = tmp_path / "run", tmp_path / "seeds.safetensors"
    assert call("init", folder, "--base", zoo / "base", "--config", config)[0] == 0
    save_file({"images": torch.full((32, 3, 16, 16), 90, dtype=torch.uint8)}, seeds)
    code, out, err = call("add", folder, zoo / "task1", "--seeds", seeds, "--json")
    warning = json.loads(out)["report"]["seed_check"]["warning"]
    assert code == 0
    assert err == f"mingle: {warning}\n"
    assert f"task 'task1': seeds from {seeds} do not look like its task" in warning
    assert f"warning     {warning}\n" in call("show", folder, "task1")[1]
    save_file({"images": torch.full((31, 3, 16, 16), 90, dtype=torch.uint8)}, seeds)  # too few to say
    assert call("add", folder, zoo / "task2", "--seeds", seeds)[2] == ""
    assert "warning" not in call("show", folder, "task2")[1]
