"""A checkpoint on disk, read one tensor at a time.

Names are canonical: the backbone says how a stored name maps to the name in its model, so that files saved
under another version of transformers, or holding more than the merged part, read the same.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mingle.errors import CheckpointError, translated

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Canonical = Callable[[str], str | tuple[str, ...] | None]
"""From the name of a stored tensor to the model's name for it.

Several names: equal parts of its rows, in order; None: not part of the model.
"""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: file, stored name, shape and safetensors dtype name.

    ``first``: where its rows start in the stored tensor, if it is a part of that only. ``transposed``: what
    is stored is turned on reading, so that rows and columns are as the model, and ``shape``, have them.
    """

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    first: int | None = None
    transposed: bool = False

    def turned(self) -> "Entry":
        """The same matrix with rows and columns exchanged."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

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

    def named(self, name: str | tuple[str, ...] | None) -> dict[str, "Entry"]:
        """The tensors of the model that it holds, by what Canonical says. Raises CheckpointError."""
        if isinstance(name, tuple):
            return dict(zip(name, self.parts(len(name)), strict=True))
        return {} if name is None else {name: self}

    def read(self) -> Tensor:
        """The tensor. Raises CheckpointError."""
        return self._as_in_model(self._stored())

    def _as_in_model(self, stored: Tensor) -> Tensor:
        return stored.mT.contiguous() if self.transposed else stored

    def _stored(self) -> Tensor:
        # A header may claim more than a number holds.
        with (
            translated(CheckpointError, f"{self.file}: cannot read tensor {self.stored_name!r}"),
            safe_open(self.file, framework="pt") as file,
        ):
            if self.first is None:
                whole: Tensor = file.get_tensor(self.stored_name)
                return whole
            number = self.shape[-1 if self.transposed else 0]
            rows: Tensor = file.get_slice(self.stored_name)[self.first : self.first + number]
            return rows

    def feed(self, digest: "hashlib._Hash") -> Tensor:
        """Adds dtype, shape and bytes to a hash, wherever they are stored; returns the tensor."""
        digest.update(f"{self.dtype}\0{self.shape}\0".encode())
        tensor = self.read()
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return tensor


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
        stored = self.entries[name].read()
        return stored if dtype is None else stored.to(dtype)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Reads every tensor, one after the other, in the order of ``names()``."""
        for name in self.names():
            yield name, self.tensor(name, dtype)

    def select(self, canonical: Canonical) -> dict[str, Entry]:
        """What is stored, under other names. Raises CheckpointError for a name given twice."""
        entries: dict[str, Entry] = {}
        for entry in self.stored:
            for part_name, part in entry.named(canonical(entry.stored_name)).items():
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
        self.visit(self.names(), lambda *_: None)
        found: str = vars(self)["fingerprint"]
        return found

    def visit(self, names: Sequence[str], look: Callable[[str, Tensor], None]) -> None:
        """Reads tensors, each once, and shows them; after all of ``names()`` the fingerprint is known too."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0".encode())
            # No name for the tensor: it would live until the next is read.
            look(name, self.entries[name].feed(digest))
        if tuple(names) == self.names():
            vars(self)["fingerprint"] = digest.hexdigest()


def stored_in(file: Path) -> Iterator[Entry]:
    """Every tensor of a safetensors file; only its header is read. Raises CheckpointError."""
    try:
        # safe_open checks the header's offsets against the length of the file.
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 – not a dict
                view = handle.get_slice(name)
                yield Entry(file, name, tuple(view.get_shape()), view.get_dtype())
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy or download it again"
        ) from error
