"""Files that were found to do harm, or that are known to: what each is, whom it reaches, how it is made."""

import io
import json
import struct
import zipfile
import zlib

import torch

from . import mutations
from .models import STEP, hashed, signed


def edited(*changes):
    """JSON with other values; a change is the keys down to a place, and what stands there (… for nothing)."""

    def make(data):
        tree = json.loads(data)
        for *keys, last, new in changes:
            node = tree
            for key in keys:
                node = node[key]
            if new is ...:
                del node[last]
            else:
                node[last] = new
        return json.dumps(tree).encode()

    return make


def rehashed(*changes):
    """A manifest that was changed by someone who can compute hashes."""
    return lambda data: hashed(json.loads(edited(*changes)(data)))


def resigned(*changes):
    """A list of exported files that was changed by someone who can compute hashes."""
    return lambda data: signed(json.loads(edited(*changes)(data)))


def just(content):
    return lambda _: content if isinstance(content, bytes) else content.encode()


def relabelled(name, **entry):
    """A tensor file whose header says something else of one tensor."""

    def make(data):
        header, body = mutations.parts_of(data)
        key = name if name in header else next(key for key in header if key.endswith(name))
        header[key] |= entry
        return mutations.joined(header, body)

    return make


def empty(side):
    """A tensor file with one more tensor, of no rows but as wide as that."""

    def make(data):
        header, body = mutations.parts_of(data)
        header["more"] = {"dtype": "F32", "shape": [0, side], "data_offsets": [len(body)] * 2}
        return mutations.joined(header, body)

    return make


def lying(header, data=b"\0" * 96):
    """An array file whose images' header says something else."""
    head = header.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data)
    return just(file.getvalue())


def bomb(_):
    """600 MB of zeros in 600 kB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as part:
        head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (200, 3, 1000, 1000), }\n"
        part.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
        for _ in range(600):
            part.write(bytes(10**6))
    return file.getvalue()


def png(width, height):
    """A picture that claims a size, and ends."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return just(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"


def pickled(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def laughs(_):
    """Dictionaries that hold each other twice, forty levels deep: 2^40 ways to walk them."""
    node = {"w": torch.ones(1)}
    for _ in range(40):
        node = {"a": node, "b": node}
    return pickled(node)


def strided(_):
    """One number that says it is a million times a million."""
    return pickled({"w": torch.ones(1).expand(10**6, 10**6)})


def packed(data):
    """What torch stores plainly, compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part) + b"\0" * 10**6)
    return file.getvalue()


def options(text):
    return just(f"method: average\noptions: {text}")


def looping(data):
    """A post-processor for pairs that refers to a second text: the library panics."""
    tree = json.loads(data)
    tree["post_processor"]["single"].append({"Sequence": {"id": "B", "type_id": 0}})
    return json.dumps(tree).encode()


DEEP = '{"a":' * 100_000
LONG = "x" * 5000
HARMLESS = ("pickle of laughs", "code beside a model")
"""What is read, and does nothing."""

CONFIG = "config.json"
FOUND = {
    # weights
    "side of a tensor that is no number": (
        "checkpoint",
        "model.safetensors",
        empty(2**63),
    ),
    "header that claims 10 TB": ("checkpoint", "model.safetensors", relabelled("a.weight", shape=[10**13])),
    "header longer than the file": (
        "checkpoint",
        "model.safetensors",
        just(struct.pack("<Q", 2**62) + b"{}"),
    ),
    "shard outside": (
        "shards",
        "model.safetensors.index.json",
        edited(("weight_map", "a", "../one.safetensors")),
    ),
    "shard of a long name": ("shards", "model.safetensors.index.json", edited(("weight_map", "a", LONG))),
    "nested index": ("shards", "model.safetensors.index.json", just(DEEP)),
    "half a character": ("shards", CONFIG, just('{"a": "\\ud800"}')),
    # archives, pictures, texts
    "array of 9 TB": (
        "arrays",
        "a.npz",
        lying(str({"descr": "|u1", "fortran_order": False, "shape": (10**13,)})),
    ),
    "array header that never ends": ("arrays", "a.npz", lying("(" * 5000)),
    "archive bomb": ("arrays", "a.npz", bomb),
    "array of objects": (
        "arrays",
        "a.npz",
        lying(str({"descr": "|O", "fortran_order": False, "shape": (2,)})),
    ),
    "fewer labels": ("arrays", "a.safetensors", relabelled("labels", dtype="F64")),
    "picture of 3.6 billion pixels": ("pictures", "a.png", png(60_000, 60_000)),
    "picture between the limits of Pillow": ("pictures", "a.png", png(10_000, 10_000)),
    "program called picture": ("pictures", "a.png", just(EPS)),
    "nested row": ("texts", "a.jsonl", just('{"text": ' + "[" * 100_000)),
    "endless label": ("texts", "a.jsonl", just('{"text": "x", "label": Infinity}')),
    "nested names": ("names", "classes.json", just("[" * 100_000)),
    # written by hand
    "month 99": ("config", "run.yaml", options("2024-99-99")),
    "number of 5000 digits": ("config", "run.yaml", options("9" * 5000)),
    "maybe": ("config", "run.yaml", options("!!bool maybe")),
    "no number": ("config", "run.yaml", options("!!int ''")),
    "object in YAML": ("config", "run.yaml", options("!!python/object/apply:os.system ['true']")),
    "list that holds itself": ("config", "run.yaml", options("&a [*a]")),
    "billion laughs": ("config", "run.yaml", just(mutations.aliases())),
    "seed beyond 64 bits": ("config", "run.yaml", just(f"method: average\nseed: {2**70}")),
    # suites, results
    "tasks that are a number": ("suite", "suite.json", edited(("tasks", 3))),
    "task outside": ("suite", "suite.json", edited(("tasks", ["../../etc"]))),
    "base outside": ("suite", "suite.json", edited(("base", "/etc"))),
    "task of a number": ("suite", "suite.json", edited(("tasks", [1.5]))),
    "accuracy of words": ("suite", "suite.json", edited(("base_accuracy", "one", "high"))),
    "nested suite": ("suite", "suite.json", just(DEEP)),
    "labels that are no numbers": ("suite", "data/one.safetensors", relabelled("test_labels", dtype="F64")),
    "rows of numbers": ("results", "results.json", edited(("rows", [3]))),
    "nested results": ("results", "results.json", just("[" * 100_000)),
    # pickles
    "pickle that repeats a number": ("pickle", "new.bin", strided),
    "pickle of laughs": ("pickle", "new.bin", laughs),
    "pickle that unpacks": ("pickle", "new.bin", packed),
    # models
    "a billion layers": ("base bert", CONFIG, edited(("num_hidden_layers", 10**9))),
    "ten billion labels": ("task bert", CONFIG, edited(("num_labels", 10**10))),
    "labels that are a number": ("task bert", CONFIG, edited(("label2id", 3), ("id2label", {}))),
    "positions of 8 TB": ("base bert", CONFIG, edited(("max_position_embeddings", 10**12))),
    "windows of 8 TB": (
        "base swinv2",
        CONFIG,
        edited(("image_size", 8192), ("window_size", 4096), ("patch_size", 1)),
    ),
    "code beside a model": (
        "base bert",
        CONFIG,
        edited(("auto_map", {"AutoModel": "evil.Model"}), ("dtype", 3)),
    ),
    "means that are words": (
        "base open_clip",
        "open_clip_config.json",
        edited(("preprocess_cfg", {"mean": "x"})),
    ),
    "settings that are words": ("base open_clip", "open_clip_config.json", edited(("preprocess_cfg", "x"))),
    "width that is an object": (
        "base open_clip",
        "open_clip_config.json",
        edited(("model_cfg", "vision_cfg", "width", {})),
    ),
    "tokenizer that panics": ("base bert", "tokenizer.json", looping),
    "tokenizer of words": ("base bert", "tokenizer.json", edited(("truncation", 8))),
    "longest text in words": ("base bert", "tokenizer_config.json", edited(("model_max_length", "long"))),
    # adapters
    "rank 0": ("adapter", "adapter_config.json", edited(("r", 0))),
    "endless alpha": (
        "adapter",
        "adapter_config.json",
        edited(("lora_alpha", float("inf")), ("r", float("inf"))),
    ),
    "pattern that takes for ever": (
        "adapter",
        "adapter_config.json",
        edited(("alpha_pattern", {"(.*.*)*.*.*.*.*.*x": 1})),
    ),
    "nested pattern": ("adapter", "adapter_config.json", edited(("alpha_pattern", {"(" * 9000: 1}))),
    "unknown home": (
        "adapter",
        "adapter_config.json",
        edited(("base_model_name_or_path", "~no-such-user/x"), ("r", 0)),
    ),
    # runs
    "header without options": ("manifest", "mingle.json", rehashed(("header", "options", ...))),
    "base without a source": ("manifest", "mingle.json", rehashed(("header", "base", {}))),
    "settings of a number": ("manifest", "mingle.json", rehashed(("header", "settings", 3))),
    "step outside": ("manifest", "mingle.json", rehashed(("steps", 0, "folder", "../../x"))),
    "task name outside": ("manifest", "mingle.json", rehashed(("steps", 0, "name", "../x"))),
    "file outside": ("manifest", "mingle.json", rehashed(("steps", 0, "files", {"../x.safetensors": {}}))),
    "step without seconds": ("step", f"{STEP}/step.json", edited(("seconds", ...))),
    "report of numbers": ("step", f"{STEP}/step.json", edited(("report", {"energy": 3, "seeds": {}}))),
    "step of another task": ("step", f"{STEP}/step.json", edited(("task", "task1"))),
    "head of another shape": ("step", f"{STEP}/head.safetensors", relabelled("class_embeddings", shape=[96])),
    "router of another shape": ("step", f"{STEP}/router.safetensors", relabelled(".weight", shape=[1, 1])),
    **{
        f"expert of another shape, {target}": (
            target,
            f"{STEP}/experts.safetensors",
            relabelled("fc1.B", shape=[96]),
        )
        for target in ("addition", "exporting")
    },
    "files of numbers": ("export", "export.json", resigned(("files", 3))),
    "file entry of numbers": ("export", "export.json", resigned(("files", {"mingle.json": [1]}))),
    "exported list of another content": ("export", "export.json", edited(("target", "other"))),
    "exported file outside": (
        "export",
        "export.json",
        resigned(("files", {"../../../../../../dev/zero": {"sha256": "0" * 64, "size": 0}})),
    ),
}
