"""What a result was computed with: every file that mingle writes carries it."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("mingle-merge", "torch", "transformers", "safetensors", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of mingle, of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """The kind of machine: same bits are promised on the same kind only."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
