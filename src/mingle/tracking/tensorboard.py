"""TensorBoard event files, one folder per run. Needs the extra ``tensorboard``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mingle.tracking.base_tracker import Tracker


class TensorBoard(Tracker):
    """Scalars and the settings as text; look at them with ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder, name)
        self._writer: Any = SummaryWriter(str(folder / name))

    def settings(self, values: Mapping[str, Any]) -> None:
        """As one text, JSON."""
        self._writer.add_text("settings", f"```\n{json.dumps(dict(values), indent=1)}\n```")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


PLUGIN = TensorBoard
