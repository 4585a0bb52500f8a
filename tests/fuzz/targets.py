"""What is attacked: valid files of every kind that the library reads, how they are damaged, who reads them.

``write(root)`` makes the valid files; ``damage`` says by file what may become of its bytes; ``read(root)``
does with them what a user would. It may return, or raise a MingleError.
"""

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from mingle.backbones import read_names
from mingle.cli.report import Form, report
from mingle.export.card import licence
from mingle.state import RunConfig
from mingle.suites import load_samples, open_suite
from mingle.suites.glue8 import read_rows
from mingle.weights import convert, open_checkpoint

from ..report.made_tables import SMALL, demo
from . import mutations

Damage = Callable[..., bytes]
"""From a source of randomness and the valid bytes to others."""


@dataclass(frozen=True)
class Target:
    """``weight``: how often it is chosen; slow readers less often."""

    write: Callable[[Path], object]
    damage: Mapping[str, Damage]
    read: Callable[[Path], object]
    weight: int = 10


def from_tree(how):
    """Damage of a text that holds plain values."""
    return lambda rng, data: how(rng, json.loads(data))


as_json = from_tree(mutations.text)


def tiny_tensors():
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.ones(2),
        "n": torch.arange(3),
        "e": torch.zeros(0, 2),
    }


def write_file(root):
    (root / "model.safetensors").write_bytes(save(tiny_tensors(), {"format": "pt"}))


def read_everything(root):
    return open_checkpoint(root).fingerprint


def write_shards(root):
    (root / "one.safetensors").write_bytes(save({"a": torch.ones(2)}))
    (root / "two.safetensors").write_bytes(save({"b": torch.ones(3, 1)}))
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text(json.dumps({"model_type": "clip", "hidden_size": 3}))


# --- samples


def picture(form):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


FORMS = {
    "png": "PNG",
    "jpg": "JPEG",
    "gif": "GIF",
    "webp": "WEBP",
    "bmp": "BMP",
    "ppm": "PPM",
    "tiff": "TIFF",
}


def write_pictures(root):
    for suffix, form in FORMS.items():
        (root / f"a.{suffix}").write_bytes(picture(form))


def read_pictures(root):
    for suffix in FORMS:
        load_samples(root / f"a.{suffix}").ids()
    return [sample.size for sample in load_samples(root).samples]


ARRAYS = {
    "images": np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4),
    "labels": np.array([0, 1]),
}


def write_arrays(root):
    np.savez(root / "a.npz", **ARRAYS)
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    (root / "a.safetensors").write_bytes(save(tensors))


def read_arrays(root):
    for file in ("a.npz", "a.safetensors"):
        found = load_samples(root / file, limit=1)
        found.ids()
        assert len(found.samples) == 1


def write_texts(root):
    rows = [{"text": "one", "label": 0}, {"text": "two", "label": 1}]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "a.tsv").write_text("sentence\tlabel\nsome words\t1\nmore\t0\n")


def read_texts(root):
    found = load_samples(root / "a.jsonl")
    found.ids()
    for file in ("a.jsonl", "a.tsv"):
        [dict(row) for row in read_rows(root / file)]


def damaged_rows(rng, data):
    if rng.random() < 0.3:
        return mutations.lines(rng, data)
    rows = [json.loads(row) for row in data.decode().split("\n")]
    return b"\n".join(mutations.text(rng, row) for row in rows)


# --- what users write by hand

CONFIG = {"method": "mingle", "preset": "default", "seed": 1, "options": {"rank": 4, "sites": "full"}}


def write_config(root):
    (root / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    (root / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n# A model\n")


def read_config(root):
    licence(str(root))
    RunConfig.load(root / "run.yaml", {}).model_dump()


def damaged_card(rng, data):
    del data
    return b"---\n" + mutations.yaml(rng, {"license": "mit", "tags": ["a"]}) + b"\n---\n# A model\n"


def write_names(root):
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    (root / "classes.json").write_text(json.dumps(["cat", "dog", "bird"]))


def read_all_names(root):
    for file in ("classes.txt", "classes.json"):
        read_names(root / file)


# --- suites, results, pickles


def write_suite(root):
    (root / "data").mkdir()
    (root / "base").mkdir()
    for number, task in enumerate(("one", "two")):
        (root / task).mkdir()
        data = {
            "test_images": torch.full((2, 3, 4, 4), number, dtype=torch.uint8),
            "test_labels": torch.tensor([0, 1]),
            "seed_images": torch.full((1, 3, 4, 4), number, dtype=torch.uint8),
            "train_images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            "train_labels": torch.zeros(1, dtype=torch.int64),
        }
        (root / "data" / f"{task}.safetensors").write_bytes(save(data))
        (root / "data" / f"{task}.train.safetensors").write_bytes(save(data))
    suite = {"schema": 1, "name": "tiny", "backbone": "clip", "base": "base", "tasks": ["one", "two"]}
    scores = {"base_accuracy": {"one": 0.5}, "individual_accuracy": {"one": 0.9}}
    (root / "suite.json").write_text(
        json.dumps(suite | scores | {"license": "mit", "licenses": {"one": "x"}})
    )


def read_suite(root):
    from mingle.cli.suite import show_suite

    suite = open_suite(root)
    licence(str(root / "one"))
    with redirect_stdout(io.StringIO()):
        show_suite(str(root))
    suite.missing(suite.tasks)
    for task in suite.tasks[:3]:
        folder = suite.checkpoint(task)
        assert folder.resolve().is_relative_to(root.resolve()), folder
        for samples, labels in (suite.test(task), suite.train(task)):
            assert len(samples) == len(labels)
        len(suite.seeds(task))
    assert Path(suite.base).resolve().is_relative_to(root.resolve())


def write_results(root):
    (root / "results.json").write_text(json.dumps(demo(**SMALL)))


def read_report(root):
    for form in (Form.markdown, Form.csv):
        with redirect_stdout(io.StringIO()):
            report([root / "results.json"], form)


def write_pickles(root):
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
    torch.save({"state_dict": state, "step": 3}, root / "new.bin")
    torch.save(state, root / "old.bin", _use_new_zipfile_serialization=False)


def read_pickles(root):
    for file in ("new.bin", "old.bin"):
        with_target = root / f"made-from-{file}"
        convert(root / file, with_target)


TARGETS = {
    "checkpoint": Target(write_file, {"model.safetensors": mutations.safetensors}, read_everything, 150),
    "shards": Target(
        write_shards,
        {
            "model.safetensors.index.json": as_json,
            "one.safetensors": mutations.safetensors,
            "config.json": as_json,
        },
        read_everything,
        80,
    ),
    "pictures": Target(write_pictures, {f"a.{s}": mutations.raw for s in FORMS}, read_pictures, 40),
    "arrays": Target(
        write_arrays,
        {
            "a.npz": lambda rng, data: mutations.npz(rng, ARRAYS),
            "a.safetensors": mutations.safetensors,
        },
        read_arrays,
        80,
    ),
    "texts": Target(write_texts, {"a.jsonl": damaged_rows, "a.tsv": mutations.lines}, read_texts, 60),
    "config": Target(
        write_config,
        {"run.yaml": lambda rng, data: mutations.yaml(rng, CONFIG), "README.md": damaged_card},
        read_config,
        20,
    ),
    "names": Target(
        write_names, {"classes.txt": mutations.lines, "classes.json": as_json}, read_all_names, 60
    ),
    "suite": Target(
        write_suite,
        {
            "suite.json": as_json,
            "data/one.safetensors": mutations.safetensors,
            "data/one.train.safetensors": mutations.safetensors,
        },
        read_suite,
        12,
    ),
    "results": Target(write_results, {"results.json": as_json}, read_report, 1),
    "pickle": Target(write_pickles, dict.fromkeys(("new.bin", "old.bin"), mutations.raw), read_pickles, 5),
}
"""Targets that need no model; those that do are in ``models``."""
