"""Files of class heads: tensors by name, and the class names in the metadata."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mingle.errors import CheckpointError, translated
from mingle.files import parse_json


def read_head(file: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors, and the JSON list ``classes`` of the metadata, if any. Raises CheckpointError."""
    with translated(CheckpointError, f"{file}: not a whole safetensors file"):
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get("classes")
        tensors = load_file(file)
    try:
        names = parse_json(text) if text else None
    except ValueError:
        names = text
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise CheckpointError(f"{file}: expected classes in its metadata to be a JSON list of strings")
    return tensors, names
