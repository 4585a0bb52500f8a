"""Old pickles become safetensors in a restricted unpickler, and nothing in them ever runs."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

import mingle.weights.conversion as conversion_module
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError
from mingle.weights import convert

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "steps": torch.tensor(3)}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


@pytest.fixture
def store(tmp_path):
    def write(value, name="pytorch_model.bin", **options):
        file = tmp_path / "old" / name
        file.parent.mkdir(exist_ok=True)
        torch.save(value, file, **options)
        return file

    return write


def refused(*args, **kwargs):
    with pytest.raises(CheckpointError) as error:
        convert(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def files(folder):
    return sorted(file.name for file in folder.iterdir())


# --- what comes out


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("weights.pt", "weights.safetensors"),
        ("last.ckpt", "last.safetensors"),
        ("adapter_model.bin", "adapter_model.safetensors"),
    ],
)
def test_new_file_lies_beside_the_old_one(store, name, new, old_format):
    file = store(WEIGHTS, name, _use_new_zipfile_serialization=not old_format)
    before = file.read_bytes()
    done = convert(file)
    same(load_file(file.parent / new), WEIGHTS)
    assert files(file.parent) == sorted([name, new])
    assert file.read_bytes() == before
    assert (done.files, done.tensors, done.key) == ((new,), 3, "")
    assert done.bytes == (file.parent / new).stat().st_size


def test_folder_of_a_model_opens_as_the_same_checkpoint(zoo, tmp_path):
    old = tmp_path / "old"
    model = CLIPVisionModelWithProjection.from_pretrained(zoo / "task1")
    old.mkdir()
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    torch.save({"optimizer": 1}, old / "optimizer.pt")
    torch.save([1], old / "training_args.bin")
    (old / "config.json").write_text((zoo / "task1" / "config.json").read_text())
    for name in (
        "tokenizer.json",
        "merges.txt",
        "spiece.model",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    ):
        (old / name).write_text("{}")
    (old / "pytorch_model.bin.notes").write_text("")
    done = convert(old, tmp_path / "new" / "model")
    assert done.copied == (
        *("LICENSE", "README.md", "chat_template.jinja", "config.json", "merges.txt", "spiece.model"),
        "tokenizer.json",
    )
    assert files(tmp_path / "new" / "model") == sorted([*done.copied, "model.safetensors"])
    assert files(tmp_path / "new") == ["model"]
    backbone = Clip()
    assert backbone.open(tmp_path / "new" / "model").fingerprint == backbone.open(zoo / "task1").fingerprint


def test_shards_stay_shards(tmp_path, store):
    parts = {
        "pytorch_model-00001-of-00002.bin": {"a": torch.ones(2)},
        "pytorch_model-00002-of-00002.bin": {"b": torch.zeros(3)},
    }
    for name, tensors in parts.items():
        folder = store(tensors, name).parent
    places = {n: name for name, tensors in parts.items() for n in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    seen = []
    done = convert(folder, tmp_path / "new", progress=lambda *step: seen.append(step))
    assert done.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert seen == [("converting", 1, 2), ("converting", 2, 2)]
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": done.files[0], "b": done.files[1]}
    assert "pytorch_model.bin.index.json" not in files(tmp_path / "new")
    convert(folder)
    from mingle.weights import open_checkpoint

    assert open_checkpoint(folder).fingerprint == open_checkpoint(tmp_path / "new").fingerprint


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"state_dict": WEIGHTS, "epoch": 3, "hyper": {"lr": 0.1}}, "state_dict"),
        ({"model": {"encoder": WEIGHTS}, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, "model.encoder"),
    ],
)
def test_the_only_dictionary_of_tensors_is_found(store, value, key):
    file = store(value)
    assert convert(file).key == key
    same(load_file(file.parent / "model.safetensors"), WEIGHTS)


def test_one_of_several_dictionaries_is_chosen_by_key(store):
    other = {"a": torch.zeros(1)}
    file = store({"model": WEIGHTS, "ema": {"model": other}})
    message = refused(file)
    assert "several dictionaries of tensors, 'model' (3 tensors), 'ema.model' (1 tensors)" in message
    assert "no dictionary of tensors under 'epoch'; found 'model'" in refused(file, key="epoch")
    assert files(file.parent) == ["pytorch_model.bin"]
    convert(file, key="ema.model")
    same(load_file(file.parent / "model.safetensors"), other)


def test_plain_values_beside_the_tensors_are_named(store):
    file = store(WEIGHTS | {"epoch": 3})
    assert convert(file).left_out == ("epoch",)
    same(load_file(file.parent / "model.safetensors"), WEIGHTS)


def test_one_tensor_under_two_names_is_stored_once(store):
    tied = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    wide = torch.arange(8.0)
    value = {"embed": tied, "head": tied, "view": tied.mT, "left": wide[:3], "right": wide[3:], "all": wide}
    file = store(value)
    done = convert(file)
    assert done.shared == {"head": "embed"}
    found = load_file(file.parent / "model.safetensors")
    same(found, {name: tensor for name, tensor in value.items() if name != "head"})
    with safe_open(file.parent / "model.safetensors", framework="pt") as stored:
        assert stored.metadata() == {"format": "pt", "head": "embed"}


def test_parameters_dtypes_and_layouts(store):
    value = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "turned": torch.arange(6).reshape(2, 3).mT,
        "empty": torch.zeros(0, 4),
        "none": torch.zeros(0, 4),
    }
    file = store(value)
    convert(file)
    same(load_file(file.parent / "model.safetensors"), {n: t.detach() for n, t in value.items()})


# --- what is refused


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def bombs(path):
    """The same call in every form that a file of weights may have."""
    evil = Evil(f"touch {path}")
    archive, old = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(1), "b": evil}, archive)
    torch.save({"a": torch.ones(1), "b": evil}, old, _use_new_zipfile_serialization=False)
    return {"archive": archive.getvalue(), "old format": old.getvalue(), "plain": pickle.dumps(evil)}


@pytest.mark.parametrize("form", ["archive", "old format", "plain"])
@pytest.mark.parametrize("forced", [False, True])
def test_nothing_in_a_pickle_runs(tmp_path, monkeypatch, form, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "ran"
    data = bombs(mark)[form]
    (tmp_path / "old").mkdir()
    file = tmp_path / "old" / "pytorch_model.bin"
    file.write_bytes(data)
    message = refused(file, tmp_path / "new")
    assert message.startswith(f"{file}: ")
    assert "system" in message or form == "plain"
    assert not mark.exists()
    assert files(tmp_path) == ["old"]
    # The bomb is a real one.
    if form == "plain":
        pickle.loads(data)
        assert mark.exists()


def test_objects_are_named(store):
    file = store({"state_dict": WEIGHTS, "args": torch.nn.Linear(2, 2)})
    message = refused(file)
    assert "holds more than weights (torch.nn.modules.linear.Linear" in message
    assert "nothing was run" in message


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([torch.ones(1)], "found a list"),
        (torch.ones(1), "found a Tensor"),
        ({"epoch": 3, "lr": 0.1}, "found a dictionary of 'epoch' (int), 'lr' (float)"),
        ({0: torch.ones(1)}, "found a dictionary of 0 (Tensor)"),
    ],
)
def test_what_holds_no_weights(store, value, found):
    message = refused(store(value))
    assert message.endswith(f"expected a dictionary of tensors by name, {found}")


def test_sparse_tensors(store):
    assert "'a' is torch.sparse_coo, expected a dense tensor" in refused(
        store({"a": torch.eye(3).to_sparse()})
    )


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "other archive"])
def test_damaged_files(store, damage):
    file = store(WEIGHTS)
    if damage == "other archive":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", "b")
    else:
        content = {"empty": b"", "text": b"hello", "cut": file.read_bytes()[:300]}
        file.write_bytes(content[damage])
    assert refused(file).startswith(f"{file}: not a pickle of weights that can be read (")
    assert files(file.parent) == ["pytorch_model.bin"]


def test_nothing_is_written_over(store, tmp_path):
    file = store(WEIGHTS)
    target = file.parent / "model.safetensors"
    save_file({"kept": torch.ones(1)}, target)
    before = target.read_bytes()
    assert refused(file).startswith(f"{target}: already there")
    (tmp_path / "new").mkdir()
    assert refused(file, tmp_path / "new").startswith(f"{tmp_path / 'new'}: already there")
    assert target.read_bytes() == before
    assert files(tmp_path / "new") == []


@pytest.mark.parametrize("target", [None, "new"])
def test_a_failure_leaves_nothing_behind(store, tmp_path, monkeypatch, target):
    file = store(WEIGHTS)

    def fail(*args, **kwargs):
        (tmp_path / "reached").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion_module, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        convert(file, target and tmp_path / target)
    assert files(file.parent) == ["pytorch_model.bin"]
    assert files(tmp_path) == ["old", "reached"]


def test_a_failure_while_files_get_their_names_leaves_nothing_behind(store, tmp_path, monkeypatch):
    folder = store({"a": torch.ones(2)}, "pytorch_model-1.bin").parent
    store({"b": torch.ones(3)}, "pytorch_model-2.bin")
    places = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    before, synced, rename = files(folder), [], Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))

    def fail_at_the_index(self, target):
        assert self.stat().st_ino in synced
        if self.name.endswith("index.json"):
            assert (folder / "model-2.safetensors").exists()
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_index)
    with pytest.raises(OSError, match="No space"):
        convert(folder)
    assert files(folder) == before
    assert files(tmp_path) == ["old"]


def test_which_file_of_a_folder(store, tmp_path):
    folder = store(WEIGHTS, "one.pt").parent
    assert convert(folder).files == ("one.safetensors",)
    store(WEIGHTS, "two.pt")
    assert "expected one pickle of weights, found one.pt, two.pt; pass the file itself" in refused(folder)
    (tmp_path / "none").mkdir()
    assert "expected one pickle of weights, found none" in refused(tmp_path / "none")
    (tmp_path / "a.safetensors").touch()
    assert "expected a pickle of weights (.bin, " in refused(tmp_path / "a.safetensors")


def test_model_of_the_hub_needs_a_target(store, tmp_path, monkeypatch):
    folder = store(WEIGHTS).parent
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or str(folder),
    )
    assert (
        refused("owner/name") == "owner/name: converting a model of the hub needs a target folder; name one"
    )
    assert asked == []
    convert("owner/name", tmp_path / "new")
    assert "*.bin" in asked[0]
    same(load_file(tmp_path / "new" / "model.safetensors"), WEIGHTS)
