"""From where a checkpoint is to the checkpoint: a model folder, a file, a hub id or a LoRA adapter."""

from pathlib import Path

from mingle.errors import CheckpointError
from mingle.files import exists, expanded
from mingle.weights.adapter import Adapter
from mingle.weights.adapter_config import ADAPTER_CONFIG, LoraSettings
from mingle.weights.checkpoint import Canonical, Checkpoint, stored_in
from mingle.weights.source import is_hub_id, local_path, read_config, weight_files

ADAPTER = "adapter_model"


def open_checkpoint(
    source: str | Path, canonical: Canonical | None = None, base: Checkpoint | None = None
) -> Checkpoint:
    """Opens a model folder, a ``.safetensors`` file, a hub id or, given its base, a folder with an adapter.

    ``canonical`` says how the tensors are called in the model; left out, they keep their names, and an
    adapter still has to be ``renamed``. Raises CheckpointError for a missing folder, a pickle, a truncated
    or corrupt file, a repeated name, an adapter that is not LoRA or says that it was trained on another base.
    """
    path = local_path(source)
    folder = path if path.is_dir() else path.parent
    if _is_adapter(path):
        settings = LoraSettings.load(folder / ADAPTER_CONFIG)
        if base is None:
            raise CheckpointError(
                f"{source}: an adapter holds only changes to its base ({settings.base}), and a whole model "
                "was expected; pass the base, and add the adapter to it"
            )
        _check_base(folder / ADAPTER_CONFIG, settings.base, base)
        stored = tuple(entry for file in weight_files(path, ADAPTER) for entry in stored_in(file))
        adapter = Adapter(str(source), folder, read_config(folder), {}, stored, base=base, settings=settings)
        return adapter if canonical is None else adapter.renamed(canonical)
    stored = tuple(entry for file in weight_files(path) for entry in stored_in(file))
    return Checkpoint(str(source), folder, read_config(folder), {}, stored).renamed(canonical or str)


def _check_base(file: Path, named: str, base: Checkpoint) -> None:
    """Refuses an adapter whose configuration names another base. Raises CheckpointError.

    A hub id and a path do not compare; two of a kind are the same where their last component is.
    """
    kinds = (is_hub_id, exists)
    if not any(kind(named) and kind(base.source) for kind in kinds):
        return
    known = {_last(base.source), _last(str(base.config.get("_name_or_path") or base.source))}
    if _last(named) not in known:
        raise CheckpointError(
            f"{file}: base_model_name_or_path: expected the run's base {base.source}, found {named}; merge "
            "an adapter into the base that it was trained on; if that is this one, put its name here"
        )


def _last(source: str) -> str:
    path = source if is_hub_id(source) else expanded(source).resolve()
    return Path(path).name.lower()


def _is_adapter(path: Path) -> bool:
    """Raises CheckpointError for a folder that holds both an adapter and a whole model."""
    if path.is_file():
        return path.stem == ADAPTER
    if not (path / ADAPTER_CONFIG).exists():
        return False
    whole = sorted(file.name for file in path.glob("model.safetensors*"))
    if whole:
        raise CheckpointError(
            f"{path}: holds a whole model ({whole[0]}) and an adapter; pass the file of the one that is meant"
        )
    return True
