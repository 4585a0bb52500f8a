"""Targets that hold models: folders of every family, adapters, runs and exports.

An attacker who writes a run's files can make all of its hashes fit, so half of the damage is done that way.
"""

import hashlib
import io
import json
import shutil
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig
from safetensors.torch import save_file

import mingle
from mingle.backbones import BACKBONES, _texts
from mingle.cli import run as commands
from mingle.export import export_run
from mingle.export import folder as folders
from mingle.methods import Base
from mingle.state.manifest import canonical_json, readable_json
from mingle.weights import check_against, check_finite

from ..backbones.families import FAMILIES
from . import mutations
from .targets import Target, as_json

CHOSEN = ("clip", "open_clip", "vit", "swinv2", "bert", "t5", "llama")
ADAPTER = "adapter_model.safetensors"


@cache
def store():
    """A folder for valid files, which goes when the process does."""
    return TemporaryDirectory(prefix="mingle-fuzz-valid-")


@cache
def valid(name):
    """Folder of a family's valid base and checkpoints, made once; the campaign's files are copies."""
    root = Path(store().name) / name
    root.mkdir()
    FAMILIES[name].write(root)
    return root


@cache
def valid_base(name):
    backbone = BACKBONES.get(FAMILIES[name].backbone)()
    return backbone, backbone.open(valid(name) / "base")


# --- model folders


def write_task(name, root):
    shutil.copytree(valid(name) / "task1", root, dirs_exist_ok=True)


def read_task(name, root):
    """A checkpoint that arrives."""
    backbone, base = valid_base(name)
    opened = backbone.open(root, base)
    backbone.check_family(opened, base)
    check_against(base, opened, backbone.optional)
    backbone.head(opened, base=base)
    return backbone.build(opened, base)


def write_base(name, root):
    shutil.copytree(valid(name) / "base", root, dirs_exist_ok=True)


def read_base(name, root):
    """A base to start from, and one pass through it."""
    _texts.tokenizer.cache_clear()
    backbone = valid_base(name)[0]
    opened = backbone.open(root)
    check_finite(opened)
    base = Base(backbone, opened)
    base.check()
    backbone.groups(base.model(), "full")
    backbone.prepare(FAMILIES[name].samples(0, 2), opened)
    _texts.tokenizer.cache_clear()


def of_folder(write, read, name, weight):
    """Damages every file of a model folder that the library reads."""
    folder = valid(name) / ("base" if write is write_base else "task1")
    kinds = {".json": as_json, ".safetensors": mutations.safetensors, ".txt": mutations.lines}
    names = sorted(file.name for file in folder.iterdir() if file.suffix in kinds)
    damage = {file: kinds[Path(file).suffix] for file in names}
    return Target(partial(write, name), damage, partial(read, name), weight)


# --- adapters


def write_adapter(root):
    base = valid_base("clip")[1]
    linear = "vision_model.encoder.layers.0.mlp.fc1"
    rows, columns = base.entries[f"{linear}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    parts = {"lora_A.weight": (2, columns), "lora_B.weight": (rows, 2), "lora_magnitude_vector": (rows,)}
    tensors = {
        f"base_model.model.{linear}.{part}": torch.rand(shape, generator=generator)
        for part, shape in parts.items()
    }
    save_file(tensors, root / ADAPTER)
    settings = LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["fc1"], rank_pattern={"fc2": 3})
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.to_dict().items()}
    values |= {"alpha_pattern": {".*fc1": 8}, "base_model_name_or_path": "tiny/clip", "peft_type": "LORA"}
    (root / "adapter_config.json").write_text(json.dumps(values, default=str))


def read_adapter(root):
    backbone, base = valid_base("clip")
    opened = backbone.open(root, base)
    backbone.check_family(opened, base)
    check_against(base, opened, backbone.optional)
    return opened.fingerprint


# --- runs and exports


@cache
def valid_run(export):
    root = Path(store().name) / f"run-{export}"
    clip = valid("clip")
    images = FAMILIES["clip"].samples(0, 6)
    run = mingle.MergeRun.create(root / "run", clip / "base", options={"steps": 1, "rank": 2})
    for task in ("task1", "task2"):
        run.add(clip / task, seeds=images)
    if export:
        export_run(run, "hf", root / "export", options={"with_base": True})
        return root / "export"
    return root / "run"


def write_run(export, root):
    shutil.copytree(valid_run(export), root, dirs_exist_ok=True)


def hashed(content):
    """The manifest with a chain and a hash that fit whatever it holds."""
    try:
        steps = content.get("steps", [])
        root = {key: item for key, item in content.items() if key not in ("steps", "sha256")}
        chain = hashlib.sha256(canonical_json(root, "x")).hexdigest()
        for step in steps:
            body = {key: item for key, item in step.items() if key != "chain"}
            chain = hashlib.sha256(chain.encode() + canonical_json(body, "x")).hexdigest()
            step["chain"] = chain
        content.pop("sha256", None)
        content["sha256"] = hashlib.sha256(canonical_json(content, "x")).hexdigest()
        return readable_json(content, "x")
    except (AttributeError, TypeError, mingle.MingleError):
        return json.dumps(content).encode()


def signed(content):
    """An ``export.json`` whose hash fits whatever it holds."""
    try:
        content.pop("sha256", None)
        return folders._signed(content)
    except (AttributeError, TypeError, mingle.MingleError):
        return json.dumps(content).encode()


def fitted(fit):
    """Damage of JSON whose hashes ``fit`` makes good, mostly."""
    return lambda rng, data: (
        as_json(rng, data) if rng.random() < 0.2 else fit(mutations.plain(rng, json.loads(data)))
    )


def refit(root):
    """Makes the manifest fit the files that lie there."""
    path = root / "mingle.json"
    content = json.loads(path.read_bytes())
    for step in content["steps"]:
        for name in step["files"]:
            data = (root / "steps" / step["folder"] / name).read_bytes()
            step["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path.write_bytes(hashed(content))


def read_run(root):
    base = valid("clip") / "base"
    run = mingle.MergeRun.open(root, base=base)
    with redirect_stdout(io.StringIO()):
        commands.log(root)
        commands.show_run(root)
        for task in run.tasks:
            commands.show_run(root, task)
    problems = mingle.MergeRun.open(root, check_files=False).verify()
    model = run.model()
    run.size_bytes()
    images = FAMILIES["clip"].samples(1, 2)
    for task in run.tasks:
        run.predict(images, task, model=model)
    assert not problems


def read_refitted(root):
    before = (root / "mingle.json").read_bytes()
    refit(root)
    try:
        read_run(root)
    finally:
        (root / "mingle.json").write_bytes(before)


@contextmanager
def refitted_copy(root):
    """The run, opened in a folder of its own that it may change."""
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(root, Path(folder) / "run"))
        refit(copy)
        yield mingle.MergeRun.open(copy, base=valid("clip") / "base")


def add_to_refitted(root):
    """One more task."""
    with refitted_copy(root) as run:
        run.add(valid("clip") / "task1", name="task3", seeds=FAMILIES["clip"].samples(0, 6))
        assert not run.verify()


def export_refitted(root):
    """Both formats that hold the experts."""
    with refitted_copy(root) as run:
        for target in ("hf", "peft"):
            export_run(run, target, run.path.with_name(target))


def read_export(root):
    mingle.from_pretrained(root).predict(FAMILIES["clip"].samples(1, 2), "task1")


STEP = "steps/0002-task2"
"""The newest, whose router is in use."""

FILES = {f"{STEP}/{stem}.safetensors": mutations.safetensors for stem in ("experts", "router", "head")}


def model_targets(families=CHOSEN):
    """Targets that need models; the models are made when this is called."""
    tasks = {f"task {name}": of_folder(write_task, read_task, name, 1) for name in families}
    bases = {f"base {name}": of_folder(write_base, read_base, name, 1) for name in families}
    adapter = {"adapter_config.json": as_json, ADAPTER: mutations.safetensors}
    return {
        **tasks,
        **bases,
        "adapter": Target(write_adapter, adapter, read_adapter, 10),
        "manifest": Target(partial(write_run, False), {"mingle.json": fitted(hashed)}, read_run, 3),
        "step": Target(partial(write_run, False), {f"{STEP}/step.json": as_json, **FILES}, read_refitted, 3),
        "addition": Target(
            partial(write_run, False), {f"{STEP}/step.json": as_json, **FILES}, add_to_refitted, 1
        ),
        "exporting": Target(
            partial(write_run, False), {f"{STEP}/step.json": as_json, **FILES}, export_refitted, 1
        ),
        "export": Target(
            partial(write_run, True),
            {"export.json": fitted(signed), "mingle.json": fitted(hashed)},
            read_export,
            2,
        ),
    }
