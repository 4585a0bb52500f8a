"""Weights out of an old pickle, into safetensors.

A pickle is a program: opening one runs it. This is the one place that opens them, with PyTorch's restricted
unpickler (``torch.load(weights_only=True)``), which knows tensors, plain containers and nothing else, and
stops at the first name of anything it does not know, before that is imported or called.
"""

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mingle.errors import CheckpointError
from mingle.weights.source import PICKLES, is_hub_id, local_path, shards, write_json

INDEX, NEW_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"
KNOWN = ("pytorch_model.bin", "adapter_model.bin")
BESIDES = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler")
"""What trainers leave beside a model: pickles without weights."""

REPEATED, SMALL = 16, 2**20
"""How many times the size of a file, or of a megabyte, its tensors may have as tensors of their own."""

COPIED = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken")
HUB_FILES = (*(f"*{suffix}" for suffix in COPIED), *(f"*{suffix}" for suffix in PICKLES))


@dataclass(frozen=True)
class Conversion:
    """What was written: files in ``target``, names that were one tensor, and what was no tensor."""

    source: str
    target: str
    key: str
    files: tuple[str, ...]
    copied: tuple[str, ...]
    tensors: int
    bytes: int
    shared: dict[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """What was written of one file."""

    key: str
    tensors: tuple[str, ...]
    shared: dict[str, str]
    left_out: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path | None = None,
    *,
    key: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Writes the weights of a pickle as safetensors, of every shard where there are several.

    ``source``: file, folder or hub id. ``target``: a new folder, which also gets the configuration and the
    tokenizer; left out, the new files go beside the pickle. ``key`` names the dictionary of weights where a
    file holds several. Nothing that is there is written over, and a failure leaves nothing behind.
    Raises CheckpointError.
    """
    if target is None and is_hub_id(source):
        raise CheckpointError(f"{source}: converting a model of the hub needs a target folder; name one")
    files = _pickles(local_path(source, HUB_FILES))
    folder = files[0].parent
    goal = folder if target is None else Path(target).expanduser()
    names = [_new_name(file, alone=len(files) == 1 and target is not None) for file in files]
    _check_goal(goal, names, new=target is not None)
    goal.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{goal.name}-", dir=goal.parent) as made:
        stage = Path(made) / "new"
        stage.mkdir()
        parts: dict[str, _Part] = {}
        for file, name in zip(files, names, strict=True):
            parts[name] = _write(file, stage / name, key)
            if progress is not None:
                progress("converting", len(parts), len(files))
        if len(names) > 1:
            _write_index(stage, parts)
        copied = () if target is None else tuple(_copy_companions(folder, stage))
        _move(stage, goal, new=target is not None)
    return Conversion(
        source=str(source),
        target=str(goal),
        key=parts[names[0]].key,
        files=tuple(names),
        copied=copied,
        tensors=sum(len(part.tensors) for part in parts.values()),
        bytes=sum((goal / name).stat().st_size for name in names),
        shared={alias: name for part in parts.values() for alias, name in part.shared.items()},
        left_out=tuple(name for part in parts.values() for name in part.left_out),
    )


def _move(stage: Path, goal: Path, *, new: bool) -> None:
    """Every file whole on the disk before it gets its name; a failure takes back what was moved."""
    # The index last: until it is there, nothing names the shards.
    files = sorted(stage.iterdir(), key=lambda file: (file.name == NEW_INDEX, file.name))
    for file in files:
        with file.open("rb+") as written:
            os.fsync(written.fileno())
    if new:
        stage.rename(goal)
        return
    moved: list[Path] = []
    try:
        for file in files:
            moved.append(file.rename(goal / file.name))
    except BaseException:
        for file in moved:
            file.unlink()
        raise


def _unpickle(file: Path) -> object:
    """What the restricted unpickler reads, on the CPU. Raises CheckpointError: what it stopped at."""
    try:
        archive = zipfile.is_zipfile(file)
        if archive:
            _check_stored(file)
        # Only files of torch ≥ 1.6 are archives, which can be mapped instead of read.
        found: object = torch.load(file, map_location="cpu", weights_only=True, mmap=archive or None)
    except Exception as error:  # whatever the unpickler makes of an arbitrary file
        foreign = _foreign(file, error)
        if foreign:
            raise CheckpointError(
                f"{file}: holds more than weights ({', '.join(foreign)}), and a pickle of such objects runs "
                "code when it is opened; nothing was run. Where you trust the file, save its state_dict() "
                "alone and convert that"
            ) from error
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{file}: not a pickle of weights that can be read ({reason})") from error
    return found


def _check_stored(file: Path) -> None:
    """PyTorch never compresses what it saves; what unpacks to more than the file was made to harm."""
    with zipfile.ZipFile(file) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > file.stat().st_size:
        raise ValueError(f"an archive that unpacks to {size} bytes, more than it has")


def _foreign(file: Path, error: Exception) -> list[str]:
    """Names of classes and functions in a file that are not weights, found without running anything."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception:  # no archive: the unpickler names the first one, and much that is no help
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _write(file: Path, target: Path, key: str | None) -> _Part:
    chosen, weights = _choose(file, _unpickle(file), key)
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    room = REPEATED * max(file.stat().st_size, SMALL)
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantised" if value.is_quantized else "empty" if value.is_meta else str(value.layout)
            raise CheckpointError(f"{file}: {name!r} is {kind}, expected a dense tensor; convert it first")
        storage = value.untyped_storage()
        same = (storage.data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and first.setdefault(same, name) != name:
            shared[name] = first[same]
            continue
        room -= value.nbytes
        if room < 0:
            raise CheckpointError(
                f"{file}: {name!r}: its tensors, views of the same memory, would be more than {REPEATED} "
                "times as large as the file; save them as tensors of their own (clone), and convert that"
            )
        # A view of memory that other tensors use, too, becomes a tensor of its own.
        whole = storage.nbytes() == value.nbytes and storage.data_ptr() not in storages
        tensors[name] = value.detach().contiguous() if whole else value.detach().clone().contiguous()
        storages.add(storage.data_ptr())
    try:
        save_file(tensors, target, metadata={"format": "pt", **shared})
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: safetensors cannot hold its tensors ({error})") from error
    left_out = tuple(name for name, value in weights.items() if not isinstance(value, Tensor))
    return _Part(chosen, tuple(tensors), shared, left_out)


def _choose(file: Path, found: object, key: str | None) -> tuple[str, Mapping[str, Any]]:
    """The dictionary of weights: the one under ``key``, or the only one."""
    candidates = dict(_dictionaries(found))
    if key is not None and key not in candidates:
        raise CheckpointError(
            f"{file}: no dictionary of tensors under {key!r}; found {_listed(candidates) or 'none'}"
        )
    if not candidates:
        kinds = (
            [f"{k!r} ({type(v).__name__})" for k, v in found.items()] if isinstance(found, Mapping) else []
        )
        what = f"a dictionary of {', '.join(kinds)}" if kinds else f"a {type(found).__name__}"
        raise CheckpointError(f"{file}: expected a dictionary of tensors by name, found {what}")
    if key is None and len(candidates) > 1:
        raise CheckpointError(
            f"{file}: holds several dictionaries of tensors, {_listed(candidates)}; choose one with "
            "key= (--key)"
        )
    chosen = next(iter(candidates)) if key is None else key
    return chosen, candidates[chosen]


def _dictionaries(
    value: object, path: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dictionaries with names as keys that hold tensors and no further containers, by their dotted path.

    One that is found in several places counts in the first.
    """
    seen = set() if seen is None else seen
    if (
        not isinstance(value, Mapping)
        or not all(isinstance(name, str) for name in value)
        or id(value) in seen
    ):
        return
    seen.add(id(value))
    nested = {n: v for n, v in value.items() if isinstance(v, Mapping | list | tuple | set)}
    if not nested and any(isinstance(v, Tensor) for v in value.values()):
        yield path, value
    for name, inner in nested.items():
        yield from _dictionaries(inner, f"{path}.{name}" if path else name, seen)


def _listed(candidates: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name!r} ({len(found)} tensors)" for name, found in candidates.items())


def _pickles(path: Path) -> list[Path]:
    """The files to convert. Raises CheckpointError."""
    if path.is_file():
        if path.suffix in PICKLES:
            return [path]
        raise CheckpointError(
            f"{path}: expected a pickle of weights ({', '.join(PICKLES)}), found {path.suffix or 'no suffix'}"
        )
    if (path / INDEX).exists():
        return shards(path / INDEX)
    found = sorted(
        f for f in path.iterdir() if f.suffix in PICKLES and not f.name.startswith(BESIDES) and f.is_file()
    )
    chosen = [f for f in found if f.name in KNOWN] or found
    if len(chosen) != 1:
        listed = ", ".join(file.name for file in chosen) or "none"
        raise CheckpointError(f"{path}: expected one pickle of weights, found {listed}; pass the file itself")
    return chosen


def _new_name(file: Path, *, alone: bool) -> str:
    """``pytorch_model*.bin`` becomes ``model*.safetensors``; others keep their name unless ``alone``."""
    if file.name == "adapter_model.bin":
        return "adapter_model.safetensors"
    stem = "model" if alone else re.sub(r"^pytorch_model", "model", file.stem)
    return f"{stem}.safetensors"


def _check_goal(goal: Path, names: Sequence[str], *, new: bool) -> None:
    there = [goal] if new else [goal / name for name in (*names, NEW_INDEX)]
    existing = [path for path in there if path.exists()]
    if existing:
        raise CheckpointError(f"{existing[0]}: already there; open that, or name another target folder")


def _write_index(stage: Path, parts: Mapping[str, _Part]) -> None:
    size = sum((stage / name).stat().st_size for name in parts)
    places = {name: file for file, part in parts.items() for name in part.tensors}
    write_json(
        stage / NEW_INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    )


def _copy_companions(folder: Path, stage: Path) -> Iterator[str]:
    """Configuration, tokenizer, preprocessor, model card and licence, but no index of other files."""
    for file in sorted(folder.iterdir()):
        wanted = file.suffix in COPIED or file.name.upper().startswith("LICENSE")
        if file.is_file() and wanted and not file.name.endswith(".index.json"):
            shutil.copyfile(file, stage / file.name)
            yield file.name
