"""Files of a model folder: weights in shards, class heads, and what lies beside a base."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mingle.backbones import Backbone
from mingle.methods import State
from mingle.methods.base_method import Progress, silent
from mingle.state.lock import write_file
from mingle.state.manifest import readable_json
from mingle.state.tensor_file import encode_tensors
from mingle.weights import Checkpoint, LazyTensors, Spec

INDEX = "model.safetensors.index.json"
FORMAT = {"format": "pt"}
COMPANIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
"""Beside a model's weights and configuration: what prepares its inputs, and how it writes."""


def write_weights(
    folder: Path, tensors: LazyTensors, *, shard_bytes: float, progress: Progress = silent
) -> None:
    """``model.safetensors``, or shards of at most ``shard_bytes`` with their index, one tensor at a time.

    A tensor that is larger has a shard of its own.
    """
    shards, done = _shards(tensors.specs, shard_bytes), 0

    def make(name: str) -> Tensor:
        nonlocal done
        done += 1
        progress("tensors", done, len(tensors))
        return tensors.stream(name)

    names: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        whole = len(shards) == 1
        file = "model.safetensors" if whole else f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = LazyTensors({name: tensors.specs[name] for name in shard}, make)
        write_file(folder / file, encode_tensors(part, file, FORMAT))
        names |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = {"total_size": sum(map(_size, tensors.specs.values()))}
        write_file(folder / INDEX, [readable_json({"metadata": total, "weight_map": names}, INDEX)])


def write_heads(folder: Path, state: State) -> None:
    """``heads/<task>.safetensors`` with the class names in its metadata, as a checkpoint brings its head.

    A head without tensors is its class names alone: ``heads/<task>.json``.
    """
    heads = {step.task: step.head for step in state.steps if step.head is not None}
    if heads:
        (folder / "heads").mkdir()
    for task, head in heads.items():
        if head.tensors:
            named = FORMAT | {"classes": json.dumps(head.classes)}
            parts = encode_tensors(head.tensors, f"head of {task}", named)
            write_file(folder / "heads" / f"{task}.safetensors", parts)
        else:
            (folder / "heads" / f"{task}.json").write_text(json.dumps(head.classes), "utf-8")


def copy_companions(base: Checkpoint, backbone: Backbone, folder: Path) -> None:
    """Copies what lies beside the base's weights and configuration, also what only its family has."""
    for name in (*COMPANIONS, *backbone.companions):
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)


def copy_base(base: Checkpoint, backbone: Backbone, folder: Path, progress: Progress) -> None:
    """The base as it is: its tensors under their stored names and dtypes, its configuration, its companions.

    A single file becomes ``model.safetensors``.
    """
    folder.mkdir()
    files = sorted({entry.file for entry in base.stored})
    names = ["model.safetensors"] if len(files) == 1 else [file.name for file in files]
    for done, (file, name) in enumerate(zip(files, names, strict=True), start=1):
        shutil.copyfile(file, folder / name)
        progress("base", done, len(files))
    others = ("config.json", *((INDEX,) if len(files) > 1 else ()))
    for name in others:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    copy_companions(base, backbone, folder)


def _size(spec: Spec) -> int:
    count = 1
    for length in spec.shape:
        count *= length
    return count * spec.dtype.itemsize


def _shards(specs: Mapping[str, Spec], limit: float) -> list[list[str]]:
    """Names in order, as many to a shard as fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + _size(spec) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _size(spec)
    return shards
