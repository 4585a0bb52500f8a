import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch

from mingle.state import RunFolder
from mingle.state.manifest import FileEntry

HEADER = {"method": "mingle", "options": {"rank": 4, "gate_lr": 1e-3}, "base": {"fingerprint": "ab" * 32}}


def tensors_of(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "experts": {f"layer{n}.{x}": torch.randn(4, 3, generator=generator) for n in (2, 10) for x in "AB"},
        "gates": {
            "layer2.weight": torch.randn(3, generator=generator).bfloat16(),
            "count": torch.tensor(seed),
        },
    }


def info_of(seed: int) -> dict[str, object]:
    return {"seed": seed, "loss": [0.1 * seed, 1e-7], "task": "é"}


def entry_of(data: bytes) -> FileEntry:
    """What the manifest says about a file that holds ``data``."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def append(run: RunFolder, seed: int) -> RunFolder:
    return run.append(f"task{seed}", tensors_of(seed), info_of(seed), summary={"seed": seed})


def assert_step(run: RunFolder, index: int, seed: int) -> None:
    assert run.manifest.steps[index].name == f"task{seed}"
    assert run.info(index) == info_of(seed)
    assert run.stems(index) == ("experts", "gates")
    for stem, expected in tensors_of(seed).items():
        found = run.read(index, stem)
        assert list(found) == sorted(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file that belongs to a run or was left behind in it; the lock is neither."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".mingle.lock")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def in_child(work: Callable[[], None]) -> int:
    """Start a forked process that does ``work`` and ends there (a new one would import torch for seconds)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def status_of(pid: int) -> int:
    """The exit status of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
