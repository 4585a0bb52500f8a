"""From where a checkpoint is to the checkpoint: a model folder, a file, a hub id or a LoRA adapter."""

from pathlib import Path

from mingle.errors import CheckpointError
from mingle.weights.adapter import Adapter
from mingle.weights.adapter_config import ADAPTER_CONFIG, LoraSettings
from mingle.weights.checkpoint import Canonical, Checkpoint, stored_in
from mingle.weights.source import local_path, read_config, weight_files

ADAPTER = "adapter_model"


def open_checkpoint(
    source: str | Path, canonical: Canonical | None = None, base: Checkpoint | None = None
) -> Checkpoint:
    """Opens a model folder, a ``.safetensors`` file, a hub id or, given its base, a folder with an adapter.

    ``canonical`` says how the tensors are called in the model; left out, they keep their names, and an
    adapter still has to be ``renamed``. Raises CheckpointError for a missing folder, a pickle, a truncated
    or corrupt file, a repeated name, an adapter that is not LoRA.
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
        stored = tuple(entry for file in weight_files(path, ADAPTER) for entry in stored_in(file))
        adapter = Adapter(str(source), folder, read_config(folder), {}, stored, base=base, settings=settings)
        return adapter if canonical is None else adapter.renamed(canonical)
    stored = tuple(entry for file in weight_files(path) for entry in stored_in(file))
    return Checkpoint(str(source), folder, read_config(folder), {}, stored).renamed(canonical or str)


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
