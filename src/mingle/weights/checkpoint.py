"""A checkpoint on disk, read one tensor at a time.

Names are canonical: the backbone says how a stored name maps to the name in its model, so that files saved
under another version of transformers, or holding more than the merged part, read the same.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mingle.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

Canonical = Callable[[str], str | tuple[str, ...] | None]
"""From the name of a stored tensor to the model's name for it.

Several names: equal parts of its rows, in order; None: not part of the model.
"""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: file, stored name, shape and safetensors dtype name.

    ``first``: where its rows start in the stored tensor, if it is a part of that only.
    """

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    first: int | None = None

    def parts(self, number: int) -> Iterator["Entry"]:
        """Equal parts of the rows, in order. Raises CheckpointError where there are none."""
        rows, rest = divmod(self.shape[0] if self.shape else 0, number)
        if rest or not rows:
            raise CheckpointError(
                f"{self.file}: {self.stored_name!r} holds {number} tensors of the model; "
                f"expected a multiple of {number} rows, found shape {self.shape}"
            )
        for first in range(0, self.shape[0], rows):
            yield replace(self, shape=(rows, *self.shape[1:]), first=first)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one model by canonical name, and its ``config.json``. Nothing is read until asked for."""

    source: str
    folder: Path
    config: dict[str, Any]
    entries: dict[str, Entry] = field(repr=False)
    stored: tuple[Entry, ...] = field(default=(), repr=False)
    """Everything in the files, also what is not part of the model (heads, say)."""

    def names(self) -> tuple[str, ...]:
        """Canonical names, sorted."""
        return tuple(sorted(self.entries))

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Reads one tensor, converted to ``dtype`` if given. Raises CheckpointError."""
        entry = self.entries[name]
        try:
            with safe_open(entry.file, framework="pt") as file:
                if entry.first is None:
                    stored: Tensor = file.get_tensor(entry.stored_name)
                else:
                    view = file.get_slice(entry.stored_name)
                    stored = view[entry.first : entry.first + entry.shape[0]]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{entry.file}: cannot read tensor {entry.stored_name!r}: {error}"
            ) from error
        return stored if dtype is None else stored.to(dtype)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Reads every tensor, one after the other, in the order of ``names()``."""
        for name in self.names():
            yield name, self.tensor(name, dtype)

    def select(self, canonical: Canonical) -> dict[str, Entry]:
        """What is stored, under other names. Raises CheckpointError for a name given twice."""
        entries: dict[str, Entry] = {}
        for entry in self.stored:
            name = canonical(entry.stored_name)
            if name is None:
                continue
            parts = (
                {name: entry}
                if isinstance(name, str)
                else dict(zip(name, entry.parts(len(name)), strict=True))
            )
            for part_name, part in parts.items():
                if part_name in entries:
                    raise CheckpointError(
                        f"{entry.file}: {entry.stored_name!r} is a second tensor for {part_name!r} "
                        f"(the first is in {entries[part_name].file.name}); remove one of them"
                    )
                entries[part_name] = part
        return entries

    def renamed(self, canonical: Canonical) -> Self:
        """The same files under other names, see ``select``. Raises CheckpointError where nothing is left."""
        entries = self.select(canonical)
        if not entries:
            raise CheckpointError(
                f"{self.source}: no tensor of this architecture found; is it the right backbone?"
            )
        return replace(self, entries=entries)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over canonical names, dtypes, shapes and bytes; independent of how the files are split."""
        digest = hashlib.sha256()
        for name in self.names():
            entry = self.entries[name]
            digest.update(f"{name}\0{entry.dtype}\0{entry.shape}\0".encode())
            digest.update(self.tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def open_checkpoint(source: str | Path, canonical: Canonical = str) -> Checkpoint:
    """Opens a model folder, a ``.safetensors`` file or a hub id.

    ``canonical`` says how the tensors are called in the model.
    Raises CheckpointError for a missing folder, a pickle, a truncated or corrupt file, a repeated name.
    """
    path = _local_path(source)
    folder = path if path.is_dir() else path.parent
    stored = tuple(
        Entry(file, name, shape, dtype)
        for file in _weight_files(path)
        for name, shape, dtype in _header(file)
    )
    return Checkpoint(str(source), folder, _config(folder), {}, stored).renamed(canonical)


def _local_path(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"{source}: no such folder or file, and not a hub id of the form owner/name")
    # The hub client is slow to import, and most checkpoints are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{source}: no local folder of that name, and the hub did not deliver it ({reason}); "
            "download it first and pass the folder"
        ) from error


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(_refusal(path))
        return [path]
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected an object 'weight_map' that names the shards")
        names = sorted({str(name) for name in weight_map.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{index}: expected plain file names, found {', '.join(outside)}")
        files = [path / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{index}: shards not found: {', '.join(missing)}")
        return files
    single = path / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(_refusal(pickles[0]))
    raise CheckpointError(
        f"{path}: expected model.safetensors or model.safetensors.index.json, found neither"
    )


def _refusal(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path}: a pickle can run code when it is opened, so mingle does not open it; "
            "save the model again with save_pretrained(..., safe_serialization=True)"
        )
    return f"{path}: expected a .safetensors file, found {path.suffix or 'no suffix'}"


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    try:
        # safe_open checks the header's offsets against the length of the file.
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 – not a dict
                view = handle.get_slice(name)
                yield name, tuple(view.get_shape()), view.get_dtype()
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy or download it again"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.exists() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside a checkpoint. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
