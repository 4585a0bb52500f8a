"""Where suites that are built on demand are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MINGLE_CACHE``, or else ``~/.cache/mingle``."""
    chosen = os.environ.get("MINGLE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mingle"
