"""A run out of its folder and into another form, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mingle.errors import ExportError, RunError, translated
from mingle.export.folder import new_folder, seal
from mingle.export.target import Target
from mingle.methods.base_method import Progress, silent
from mingle.provenance import versions
from mingle.registry import Registry
from mingle.state import MergeRun
from mingle.state.stored_step import public_name

TARGETS: Registry[type[Target[Any]]] = Registry("export target", "mingle.export.targets")


def export_run(
    run: MergeRun,
    to: str,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the run to a new folder ``out`` in the form ``to``; returns the content of its ``export.json``.

    The same run and options give the same files. ``force`` replaces an earlier export, nothing else.

    Raises UnknownNameError (target), ConfigError (option), ExportError (a run without that form, a folder
    that holds something), RunError, CheckpointError.
    """
    target = TARGETS.get(to).with_options(options or {})
    if not run.tasks:
        raise ExportError(f"{run.path}: nothing merged yet; add a checkpoint first")
    target.check(run)
    with new_folder(Path(out), force=force) as folder:
        # The folder says what became of an export that the disk stopped.
        with translated(RunError, f"{run.path}: what is stored and the base give no export", passing=OSError):
            details = target.write(run, folder, progress)
        return seal(folder, {**_origin(run, target), **details})


def _origin(run: MergeRun, target: Target[Any]) -> dict[str, Any]:
    """What the export is of, and what made it."""
    header = run.header
    kept = ("method", "preset", "options", "settings", "backbone", "seed")
    return {
        "target": target.name(),
        "options": target.options.model_dump(mode="json"),
        "run": {key: header[key] for key in kept} | {"sha256": run.fingerprint},
        "base": {
            "source": public_name(str(run.base_source)),
            "fingerprint": header["base"]["fingerprint"],
        },
        "classes": {task: run.info(task)["classes"] for task in run.tasks},
        "versions": versions(),
    }
