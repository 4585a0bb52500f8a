"""Files of tensors (safetensors), written and read one tensor at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mingle.errors import RunError
from mingle.state.manifest import STEP_JSON, TENSORS_SUFFIX, readable_json
from mingle.weights import LazyTensors, Spec

DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names in the format, in the order in which its own writer lays tensors out: widest first."""

Found = TypeVar("Found")
_PLACE = {dtype: place for place, dtype in enumerate(DTYPES)}
_TORCH = {name: dtype for dtype, name in DTYPES.items()}


def encode_step(
    tensors: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """The files of a step, each with its content in parts: a whole one could be too much for the memory.

    ``info`` is asked for its content, if it is a function, when all tensors have been taken. Raises RunError.
    """
    for stem in sorted(tensors):
        yield stem + TENSORS_SUFFIX, encode_tensors(tensors[stem], stem + TENSORS_SUFFIX)
    yield STEP_JSON, [readable_json(dict(info() if callable(info) else info), STEP_JSON)]


def encode_tensors(
    tensors: Mapping[str, Tensor], what: str, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The safetensors file of the tensors in parts, the bytes that ``safetensors.torch.save`` would give.

    The header comes first, for the shapes of lazy tensors are known; then each tensor is made, handed out and
    forgotten. Raises RunError for what is no dense tensor or has no name.
    """
    specs = tensors.specs if isinstance(tensors, LazyTensors) else None
    try:
        if specs is None:
            specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        names = sorted(specs, key=lambda name: (_PLACE[specs[name].dtype], name))
        yield _header(names, specs, metadata)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unfit(what, error) from error
    take = tensors.stream if isinstance(tensors, LazyTensors) else tensors.__getitem__
    for name in names:
        # No name for the tensor: the one before would live until the next is made.
        yield _content(take(name), specs[name], what)


def open_tensors(path: Path, check: Callable[[], object]) -> LazyTensors:
    """The tensors in the file at ``path``, read when they are asked for, and not kept.

    ``check`` raises if the file is not what it should be; it is called once now, and again where the file has
    changed since a tensor was read. What was read of another file than the checked one is read again. Raises
    RunError for a file that is no safetensors.
    """
    stamp: tuple[int, ...] = ()

    def confirmed(work: Callable[[], Found]) -> Found:
        nonlocal stamp
        while True:
            if (now := _stamp(path)) != stamp or not now:
                check()
                stamp = now
            try:
                found = work()
            except (OSError, RunError):
                if _stamp(path) == stamp:
                    raise
            else:
                if _stamp(path) == stamp:
                    return found

    def read(name: str) -> Tensor:
        content = bytearray(places[name][1] - places[name][0])

        def fill() -> None:
            with path.open("rb") as file:
                file.seek(places[name][0])
                file.readinto(content)

        confirmed(fill)
        shape, dtype = specs[name]
        flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return flat.view(dtype).reshape(shape)

    specs, places = confirmed(lambda: _layout(path))
    return LazyTensors(specs, read)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when another file takes the name, or this one is written to; empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _layout(path: Path) -> tuple[dict[str, Spec], dict[str, tuple[int, int]]]:
    """Shape and dtype of every tensor in a file, and where its bytes begin and end."""
    try:
        # The format's own reader checks the header against the length of the file. For reading it would map
        # the file, and parse the header again for every tensor.
        with safe_open(path, framework="pt"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        specs = {n: Spec(tuple(e["shape"]), _TORCH[e["dtype"]]) for n, e in entries.items()}
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{path}: safetensors cannot read it ({error}); update safetensors") from error
    offsets = {n: e["data_offsets"] for n, e in entries.items()}
    return specs, {n: (8 + length + start, 8 + length + stop) for n, (start, stop) in offsets.items()}


def _header(names: list[str], specs: Mapping[str, Spec], metadata: Mapping[str, str] | None) -> bytes:
    if "__metadata__" in specs:
        raise ValueError("the name '__metadata__', which the format reserves")
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the name {name!r}")
        shape, dtype = specs[name]
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _content(tensor: Tensor, spec: Spec, what: str) -> memoryview:
    try:
        if (found := Spec(tuple(tensor.shape), tensor.dtype)) != spec:
            raise ValueError(f"{found} where {spec} was announced")
        # The values, not the memory behind a conjugate or negative view
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # A single entry counts as contiguous whatever its stride, and `view` wants a stride of one.
        return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().data
    except (RuntimeError, TypeError, ValueError) as error:
        raise _unfit(what, error) from error


def _unfit(what: str, error: Exception) -> RunError:
    return RunError(f"{what}: expected named dense tensors, found: {error}; convert them first")
