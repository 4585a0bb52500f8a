"""However a checkpoint is stored, it reads the same; what cannot be read says so in one line."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

import mingle.weights.checkpoint as checkpoint_module
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError
from mingle.weights import open_checkpoint
from mingle.weights.checkpoint import stored_in
from mingle.weights.source import HUB_FILES

from ..conftest import CONFIG

BACKBONE = Clip()
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def shard(folder, tensors, parts):
    """Writes the tensors over several files with the index that transformers expects."""
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        chosen = names[part::parts]
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def store(zoo, tmp_path):
    """Writes tensors as a model folder, in one file or several, with the tiny model's config."""

    def write(tensors, name="stored", parts=1):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(zoo / "task1" / "config.json", folder)
        if parts == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            shard(folder, tensors, parts)
        return folder

    return write


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def both_outputs(folder, pixels):
    """(image embeddings of the library's model, of transformers' own loading of the same folder)."""
    theirs = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ours = BACKBONE.build(BACKBONE.open(folder))(pixels).image_embeds
        return ours, theirs.eval()(pixels).image_embeds


# --- the same tensors, stored differently


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("parts", [1, 3])
def test_model_is_the_one_that_transformers_loads(store, zoo, pixels, dtype, parts):
    folder = store({n: t.to(dtype) for n, t in tensors_of(zoo / "task1").items()}, parts=parts)
    ours, theirs = both_outputs(folder, pixels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert ours.std() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_precision_is_kept_until_another_is_asked_for(store, zoo, dtype):
    stored = {n: t.to(dtype) for n, t in tensors_of(zoo / "task1").items()}
    opened = BACKBONE.open(store(stored))
    assert opened.names() == tuple(sorted(stored))
    for name, tensor in opened.tensors():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, stored[name])
    for name, tensor in opened.tensors(torch.float64):
        assert torch.equal(tensor, stored[name].double())


def older_names(name):
    """transformers 4 writes a tower without projection with its full prefix, 5 without."""
    return name.removeprefix("vision_model.")


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("rename", [str, older_names], ids=["prefixed", "bare"])
def test_fingerprint_does_not_depend_on_files_or_prefixes(store, zoo, parts, rename):
    tensors = tensors_of(zoo / "task1")
    folder = store({rename(name): tensor for name, tensor in tensors.items()}, parts=parts)
    assert BACKBONE.open(folder).fingerprint == BACKBONE.open(zoo / "task1").fingerprint


def test_fingerprint_notices_every_kind_of_change(store, zoo):
    tensors = tensors_of(zoo / "task1")
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    one_bit = tensors[name].clone()
    one_bit.view(torch.int32)[3, 4] ^= 1
    changes = {
        "same": tensors,
        "bit": tensors | {name: one_bit},
        "dtype": tensors | {name: tensors[name].half()},
        "shape": tensors | {name: tensors[name].mT.contiguous()},
        "less": {n: t for n, t in tensors.items() if n != name},
        "more": tensors | {"extra": torch.zeros(1)},
        "swapped": tensors
        | {
            "vision_model.encoder.layers.0.layer_norm1.bias": tensors[
                "vision_model.encoder.layers.0.layer_norm2.bias"
            ],
            "vision_model.encoder.layers.0.layer_norm2.bias": tensors[
                "vision_model.encoder.layers.0.layer_norm1.bias"
            ],
        },
    }
    prints = {kind: BACKBONE.open(store(t, kind)).fingerprint for kind, t in changes.items()}
    assert prints["same"] == BACKBONE.open(zoo / "task1").fingerprint
    assert len(set(prints.values())) == len(changes)
    assert all(re.fullmatch("[0-9a-f]{64}", p) for p in prints.values())


def test_fingerprint_tells_the_same_bytes_apart(store):
    """Bytes alone are not a checkpoint: what they are called and how they are read counts too."""
    data = torch.arange(6, dtype=torch.float32)
    variants = [
        {"a": data},
        {"b": data},
        {"a": data.reshape(2, 3)},
        {"a": data.view(torch.float16)},
        {"a": data.view(torch.bfloat16)},
        {"a": data[:3].clone(), "b": data[3:].clone()},
        {"a": data[:2].clone(), "b": data[2:].clone()},
    ]
    prints = [BACKBONE.open(store(t, str(i))).fingerprint for i, t in enumerate(variants)]
    assert len(set(prints)) == len(variants)


@pytest.fixture(scope="module")
def full_clip(zoo, tmp_path_factory):
    """A CLIPModel with a text tower, whose vision tower holds the tensors of ``task1``."""
    vision = {k: v for k, v in CONFIG.items() if k != "projection_dim"}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 20,
        "max_position_embeddings": 6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=CONFIG["projection_dim"])
    torch.manual_seed(0)
    model = CLIPModel(config)
    missing, unexpected = model.load_state_dict(tensors_of(zoo / "task1"), strict=False)
    assert unexpected == []
    assert all(name.startswith(("text_", "logit_scale")) for name in missing)
    folder = tmp_path_factory.mktemp("full")
    model.save_pretrained(folder)
    return folder, model.eval()


def test_text_tower_of_a_full_model_is_left_out(full_clip, zoo, pixels):
    folder, model = full_clip
    opened = BACKBONE.open(folder)
    assert opened.fingerprint == BACKBONE.open(zoo / "task1").fingerprint
    with torch.no_grad():
        ours = BACKBONE.build(opened)(pixels).image_embeds
        theirs = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_single_file_is_opened_too(zoo):
    opened = BACKBONE.open(zoo / "task1" / "model.safetensors")
    assert opened.fingerprint == BACKBONE.open(zoo / "task1").fingerprint
    assert opened.config["hidden_size"] == CONFIG["hidden_size"]


def test_projection_may_be_left_to_the_base(store, zoo, pixels):
    tensors = tensors_of(zoo / "task1")
    projection = tensors.pop("visual_projection.weight")
    opened, base = BACKBONE.open(store(tensors)), BACKBONE.open(zoo / "base")
    built = BACKBONE.build(opened, base)
    assert not torch.equal(base.tensor("visual_projection.weight"), projection)
    assert torch.equal(built.visual_projection.weight, base.tensor("visual_projection.weight"))
    assert torch.equal(built.vision_model.post_layernorm.bias, tensors["vision_model.post_layernorm.bias"])
    with pytest.raises(
        CheckpointError, match=r"1 tensors do not fit.*'visual_projection.weight'.*found none"
    ):
        BACKBONE.build(opened)


def test_built_model_is_frozen_and_in_eval_mode(base):
    model = base.backbone.build(base.checkpoint)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


# --- laziness


def test_opening_reads_headers_only(zoo, monkeypatch):
    read = []
    real = checkpoint_module.safe_open

    class Spy:
        def __init__(self, *args, **kwargs):
            self.handle = real(*args, **kwargs)

        def __enter__(self):
            self.inside = self.handle.__enter__()
            return self

        def __exit__(self, *args):
            return self.handle.__exit__(*args)

        def keys(self):
            return self.inside.keys()

        def get_slice(self, name):
            view = self.inside.get_slice(name)
            # Only the header's part of a slice may be used; indexing it would read data.
            return type("Header", (), {"get_shape": view.get_shape, "get_dtype": view.get_dtype})()

        def get_tensor(self, name):
            read.append(name)
            return self.inside.get_tensor(name)

    monkeypatch.setattr(checkpoint_module, "safe_open", Spy)
    opened = BACKBONE.open(zoo / "task1")
    assert len(opened.names()) == len(tensors_of(zoo / "task1"))
    assert opened.entries["visual_projection.weight"].shape == (24, 32)
    BACKBONE.skeleton(opened)
    assert read == []
    opened.tensor("visual_projection.weight")
    assert read == ["visual_projection.weight"]
    assert len(list(zip(range(3), opened.tensors(), strict=False))) == 3
    assert len(read) == 4


def test_skeleton_has_no_weights(base):
    assert all(p.is_meta for p in base.backbone.skeleton(base.checkpoint).parameters())


# --- what is refused


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def refused(source):
    with pytest.raises(CheckpointError) as error:
        BACKBONE.open(source)
    return one_line(error)


HEADER = struct.pack("<Q", 2) + b"{}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:300],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"garbage, not tensors" * 100,
        lambda data: b"\xff" * 16 + data,
        lambda data: HEADER[:8] + b"[]",
    ],
    ids=["empty", "no header", "half a header", "last byte", "longer", "garbage", "header length", "list"],
)
def test_damaged_file_is_named(store, zoo, damage):
    folder = store(tensors_of(zoo / "task1"))
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    message = refused(folder)
    assert message.startswith(f"{file}: not a whole safetensors file (")
    assert message.endswith("copy or download it again")


def test_file_that_is_damaged_or_gone_after_opening(store, zoo):
    folder = store(tensors_of(zoo / "task1"))
    opened = BACKBONE.open(folder)
    file = folder / "model.safetensors"
    for spoil in (lambda: file.write_bytes(file.read_bytes()[:-50]), file.unlink):
        spoil()
        with pytest.raises(CheckpointError, match=r"cannot read tensor 'visual_projection\.weight'") as error:
            opened.tensor("visual_projection.weight")
        assert str(file) in one_line(error)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt", "m.pkl"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_pickles_are_not_opened(tmp_path, monkeypatch, name, whole_folder):
    file = tmp_path / name
    torch.save({"embeddings.class_embedding": torch.ones(3)}, file)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    monkeypatch.setattr("pickle.load", lambda *a, **k: pytest.fail("a pickle was opened"))
    message = refused(tmp_path if whole_folder else file)
    assert message.startswith(f"{file}: a pickle can run code")
    assert message.endswith(f"mingle convert {file}")


def test_safetensors_beside_a_pickle_are_taken(store, zoo):
    folder = store(tensors_of(zoo / "task1"))
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert BACKBONE.open(folder).fingerprint == BACKBONE.open(zoo / "task1").fingerprint


def test_folder_without_weights(tmp_path):
    assert refused(tmp_path) == (
        f"{tmp_path}: expected model.safetensors or model.safetensors.index.json, found neither"
    )


@pytest.mark.parametrize("name", ["notes.txt", "model"])
def test_file_of_another_kind(tmp_path, name):
    file = tmp_path / name
    file.write_text("hello")
    assert refused(file).startswith(f"{file}: expected a .safetensors file, found ")


def test_missing_shards_are_all_named(store, zoo):
    folder = store(tensors_of(zoo / "task1"), parts=4)
    for part in (2, 4):
        (folder / f"model-0000{part}-of-00004.safetensors").unlink()
    message = refused(folder)
    assert "shards not found: model-00002-of-00004.safetensors, model-00004-of-00004.safetensors" in message


@pytest.mark.parametrize(
    "shard_name", ["../task1/model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."]
)
def test_index_cannot_point_outside_its_folder(store, zoo, shard_name):
    folder = store(tensors_of(zoo / "task1"), parts=2)
    (folder / "sub").mkdir()
    shutil.copy(zoo / "task1" / "model.safetensors", folder / "sub")
    shutil.copytree(zoo / "task1", folder.parent / "task1")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard_name}}))
    message = refused(folder)
    assert message.startswith(f"{index}: ")
    assert shard_name in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "expected an object 'weight_map'"),
        ('{"weight_map": {}}', "expected an object 'weight_map'"),
        ('{"weight_map": ["a"]}', "expected an object 'weight_map'"),
    ],
)
def test_broken_index(store, zoo, text, reason):
    folder = store(tensors_of(zoo / "task1"))
    index = folder / "model.safetensors.index.json"
    index.write_text(text)
    message = refused(folder)
    assert message.startswith(f"{index}: ")
    assert reason in message


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\udcff"])
def test_broken_config(store, zoo, text):
    folder = store(tensors_of(zoo / "task1"))
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(folder).startswith(f"{folder / 'config.json'}: ")


def test_two_tensors_for_one_name(store, zoo):
    tensors = tensors_of(zoo / "task1")
    name = "vision_model.embeddings.class_embedding"
    folder = store(tensors | {"embeddings.class_embedding": tensors[name].clone()})
    message = refused(folder)
    assert "a second tensor for 'vision_model.embeddings.class_embedding'" in message


def test_one_name_in_two_shards(store, zoo):
    tensors = tensors_of(zoo / "task1")
    folder = store(tensors, parts=2)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {sorted(tensors)[0]: torch.ones(1)}, second)
    message = refused(folder)
    assert f"{second}: {sorted(tensors)[0]!r} is a second tensor" in message
    assert "the first is in model-00001-of-00002.safetensors" in message


def test_checkpoint_of_nothing_that_is_merged(store):
    folder = store({"text_model.embeddings.weight": torch.ones(2), "logit_scale": torch.ones(())})
    assert refused(folder).startswith(f"{folder}: no tensor of this architecture found")


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "~/no-where", "a/b/c"])
def test_source_that_is_neither_path_nor_hub_id(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("went to the hub"))
    message = refused(source)
    assert message.startswith(f"{source}: no such folder or file, and not a hub id")


def offline_errors():
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return [
        LocalEntryNotFoundError("not cached\nand a second line"),
        OfflineModeIsEnabled("offline mode is enabled"),
        HFValidationError("Repo id must use alphanumeric chars"),
        ConnectionError(),
        TimeoutError("too slow"),
    ]


@pytest.mark.parametrize("error", offline_errors(), ids=lambda e: type(e).__name__)
def test_hub_id_that_cannot_be_had(monkeypatch, error):
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = refused("owner/name")
    assert message.startswith("owner/name: no local folder of that name, and the hub did not deliver it (")
    assert (str(error).splitlines() or [type(error).__name__])[0] in message
    assert asked == [(("owner/name",), {"allow_patterns": list(HUB_FILES)})]


def hub_answers():
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    def answer(kind):
        # The hub's own errors want a whole response; the message is all that is read.
        return kind.__new__(kind, "said the hub")

    return [
        (
            answer(GatedRepoError),
            r"gated: accept its terms at https://huggingface.co/owner/name, then log in",
        ),
        (answer(RepositoryNotFoundError), "check the name; if the model is private, log in"),
        (OfflineModeIsEnabled("offline mode is enabled"), "unset HF_HUB_OFFLINE, or download it first"),
        (ConnectionError("no route"), "check the network, or download it first and pass the folder"),
    ]


@pytest.mark.parametrize(("error", "advice"), hub_answers(), ids=lambda e: type(e).__name__)
def test_what_to_do_when_the_hub_does_not_deliver(monkeypatch, error, advice):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert advice in refused("owner/name")


def test_path_with_a_space_is_not_a_hub_id():
    """The hub client refuses the name by itself, before any network."""
    assert refused("my models/first task").startswith("my models/first task: no local folder of that name")


def test_hub_snapshot_is_read_like_a_folder(monkeypatch, zoo):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(zoo / "task1"))
    opened = BACKBONE.open("owner/name")
    assert opened.source == "owner/name"
    assert opened.fingerprint == BACKBONE.open(zoo / "task1").fingerprint


def test_every_backbone_name_is_asked_for(zoo):
    """``canonical`` decides; the store itself knows no family."""
    asked = []

    def canonical(name):
        asked.append(name)
        return "only" if name == "visual_projection.weight" else None

    opened = open_checkpoint(zoo / "task1", canonical)
    assert opened.names() == ("only",)
    assert sorted(asked) == sorted(tensors_of(zoo / "task1"))
    assert torch.equal(opened.tensor("only"), tensors_of(zoo / "task1")["visual_projection.weight"])


# --- what config.json says


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "bert"},
        {"model_type": None},
        {"hidden_size": "wide"},
        {"hidden_size": 33},
        {"hidden_act": "no such"},
        {"patch_size": 0},
    ],
    ids=str,
)
def test_config_that_describes_no_tower(store, zoo, changes):
    folder = store(tensors_of(zoo / "task1"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError) as error:
        BACKBONE.skeleton(BACKBONE.open(folder))
    assert one_line(error).startswith(f"{folder}: ")
    assert "config.json" in one_line(error)


def test_weights_that_do_not_fit_the_config(store, zoo):
    folder = store(tensors_of(zoo / "task1"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(CheckpointError) as error:
        BACKBONE.build(BACKBONE.open(folder))
    assert "6 tensors do not fit the model of config.json" in one_line(error)
    assert "expected (40,), found (48,)" in one_line(error)


def test_sources_are_told_as_they_were_given(zoo):
    assert BACKBONE.open(zoo / "task1").source == str(zoo / "task1")
    assert BACKBONE.open(zoo / "task1").folder == Path(zoo / "task1")


def test_a_part_of_the_rows_is_turned_on_reading(tmp_path):
    matrix = torch.arange(12.0).reshape(6, 2)
    save_file({"w": matrix}, tmp_path / "model.safetensors")
    entry = next(stored_in(tmp_path / "model.safetensors"))
    for part, rows in zip(entry.parts(2), matrix.chunk(2), strict=True):
        assert torch.equal(part.turned().read(), rows.mT)
        assert part.turned().shape == (2, 3)
        assert torch.equal(part.turned().turned().read(), rows)
