from pathlib import Path

import pytest

from mingle.state import RunFolder

from .helpers import HEADER, append


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two steps."""
    return append(append(RunFolder.create(tmp_path / "run", HEADER), 1), 2)
