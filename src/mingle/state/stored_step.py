"""Steps of a method as they lie in a run folder."""

import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from mingle.backbones import Head
from mingle.files import exists, expanded
from mingle.methods import Step
from mingle.methods.base_method import Progress
from mingle.provenance import machine, versions
from mingle.state.history import step_info
from mingle.state.run_folder import RunFolder
from mingle.weights import Checkpoint

HEAD = "head"


class StoredTensors(Mapping[str, Mapping[str, Tensor]]):
    """The tensors of a stored step by file stem, read when asked for. A stem without a file is empty.

    A file is checked when the first of its tensors is asked for, and not again until it changes.
    """

    def __init__(self, folder: RunFolder, index: int) -> None:
        self._folder, self._index = folder, index
        self._opened: dict[str, Mapping[str, Tensor]] = {}

    def __getitem__(self, stem: str) -> Mapping[str, Tensor]:
        return self.opened(stem) if stem in self._folder.stems(self._index) else {}

    def __iter__(self) -> Iterator[str]:
        return (stem for stem in self._folder.stems(self._index) if stem != HEAD)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def opened(self, stem: str) -> Mapping[str, Tensor]:
        """The tensors of one file, each read anew when it is asked for. Raises as `RunFolder.read` does."""
        if stem not in self._opened:
            self._opened[stem] = self._folder.read(self._index, stem)
        return self._opened[stem]


def read_step(folder: RunFolder, index: int, tensors: StoredTensors) -> Step:
    """The step at ``index`` with its tensors, which are read, and checked, when they are asked for."""
    info = step_info(folder, index)
    head = None
    if info["classes"] is not None:
        head = Head(tuple(info["classes"]), dict(tensors.opened(HEAD)))
    return Step(info["task"], tensors, head, info["report"])


def append_step(folder: RunFolder, step: Step, checkpoint: Checkpoint, started: float) -> RunFolder:
    """Commits a step with what it was made from, when, where and with what. Raises RunError.

    ``started``: of ``time.perf_counter()``. Tensors of the step that are not computed yet are while they are
    written, so the seconds of the step end there.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {stem: found for stem, found in step.tensors.items() if found}
    if step.head is not None:
        tensors[HEAD] = step.head.tensors

    def info() -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - started,
            "task": step.task,
            "classes": list(step.head.classes) if step.head else None,
            "checkpoint": {"source": checkpoint.source, "fingerprint": checkpoint.fingerprint},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "report": step.report,
        }

    return folder.append(step.task, tensors, info)


def copy_run(folder: RunFolder, path: Path, base: str, progress: Progress) -> RunFolder:
    """The same header and steps in a new folder, with another source of the base. Raises RunError.

    Every file is checked while it is read. Of where checkpoints and seeds lay on this machine only the last
    part of the path is kept: a copy is made to be given away.
    """
    header = dict(folder.manifest.header)
    copied = RunFolder.create(path, header | {"base": {**header["base"], "source": base}})
    steps = folder.manifest.steps
    for index, step in enumerate(steps):
        tensors = {stem: folder.read(index, stem) for stem in folder.stems(index)}
        info = step_info(folder, index)
        for part in (info["checkpoint"], info["report"].get("seeds", {})):
            part.update({key: public_name(part[key]) for key in ("source",) if key in part})
        copied = copied.append(step.name, tensors, info, summary=step.summary)
        progress("steps", index + 1, len(steps))
    return copied


def public_name(source: str) -> str:
    """A source without the folders of this machine; a hub id or ``suite:task`` is what it was."""
    path = Path(source)
    local = path.is_absolute() or exists(path) or source.startswith((".", "~"))
    return path.resolve().name if local else source


def portable(source: str | Path, run: Path) -> str:
    """A local source relative to the run, so that both can move together; any other as it is."""
    path = expanded(source)
    return os.path.relpath(path.resolve(), run.resolve()) if exists(path) else str(source)


def resolved(source: str, run: Path) -> str | Path:
    """What ``portable`` gave, found again from where the run is now."""
    beside = run / source
    return beside if exists(beside) else source
