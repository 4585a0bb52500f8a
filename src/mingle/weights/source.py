"""Where a checkpoint's files are: on disk, or fetched from the hub. No tensor is read here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mingle import files
from mingle.errors import CheckpointError, MingleError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
"""Weights, what describes a model and its tokenizer, and the model card."""


def is_hub_id(source: str | Path) -> bool:
    """Whether there is no such path, and ``source`` may be ``owner/name`` on the hub."""
    text = str(source)
    return not files.exists(source) and text.count("/") == 1 and not text.startswith((".", "/", "~"))


def local_path(source: str | Path, patterns: Sequence[str] = HUB_FILES) -> Path:
    """The folder or file; of a hub id, the folder that the hub's client keeps. Raises CheckpointError."""
    path = files.expanded(source)
    if files.exists(path):
        return path
    if not is_hub_id(source):
        raise CheckpointError(f"{source}: no such folder or file, and not a hub id of the form owner/name")
    # The hub client is slow to import, and most checkpoints are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{source}: no local folder of that name, and the hub did not deliver it ({reason}); "
            f"{_what_to_do(str(source), error)}"
        ) from error


def _what_to_do(source: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"the model is gated: accept its terms at https://huggingface.co/{source}, then log in "
            "with 'hf auth login'"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "check the name; if the model is private, log in with 'hf auth login'"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE, or download it first and pass the folder"
    return "check the network, or download it first and pass the folder"


def weight_files(path: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a folder, or the file itself. Raises CheckpointError."""
    if not path.is_dir():
        if path.suffix != ".safetensors":
            raise CheckpointError(_refusal(path))
        return [path]
    index = path / f"{stem}.safetensors.index.json"
    if index.exists():
        return shards(index)
    single = path / f"{stem}.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(_refusal(pickles[0]))
    raise CheckpointError(f"{path}: expected {single.name} or {index.name}, found neither")


def shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it. Raises CheckpointError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected an object 'weight_map' that names the shards")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if not files.is_plain_name(name)]
    if outside:
        raise CheckpointError(f"{index}: expected plain file names, found {', '.join(outside)}")
    found = [index.parent / name for name in names]
    missing = [file.name for file in found if not file.is_file()]
    if missing:
        raise CheckpointError(f"{index}: shards not found: {', '.join(missing)}")
    return found


def _refusal(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path}: a pickle can run code when it is opened, so mingle does not open it; "
            f"turn it into safetensors first: mingle convert {path}"
        )
    return f"{path}: expected a .safetensors file, found {path.suffix or 'no suffix'}"


def read_json(
    path: Path, kind: type[MingleError] = CheckpointError, what: str = "readable as JSON"
) -> dict[str, Any]:
    """A JSON object, such as those beside a checkpoint. Raises ``kind``, where the file is not ``what``."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError) as error:
        raise kind(f"{path}: not {what} ({error})") from error
    if not isinstance(value, dict):
        raise kind(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder, empty without one. Raises CheckpointError."""
    path = folder / "config.json"
    return read_json(path) if path.exists() else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
