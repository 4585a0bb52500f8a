"""The results file: JSON with a schema version, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mingle.errors import ConfigError
from mingle.files import read_json
from mingle.state.lock import explained, replace_file

RESULTS_SCHEMA = 2


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Writes plain values; a file that was there before stays until the new one is complete.

    Two processes may write the same file: the last one stays. Raises RunError for a disk that fails.
    """
    data = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")
    with explained(path.parent, f"write {path.name}", "the file is whole either way, old or new"):
        replace_file(path, data, writer=f".{os.getpid()}")


def read_results(path: Path) -> dict[str, Any]:
    """Reads results. Raises ConfigError when the file is missing, damaged or of another schema."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable results file ({error})") from error
    found = value.get("schema") if isinstance(value, dict) else None
    if found != RESULTS_SCHEMA:
        raise ConfigError(
            f"{path}: expected results of schema {RESULTS_SCHEMA}, found {found!r}; "
            "compute them again with this version of mingle"
        )
    return dict(value)
