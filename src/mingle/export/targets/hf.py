"""The whole run as a folder that ``mingle.from_pretrained`` opens in one line."""

from pathlib import Path
from typing import Any

from pydantic import Field

from mingle.config import Options
from mingle.export.card import model_card
from mingle.export.folder import CARD_FILE
from mingle.export.model_files import copy_base
from mingle.export.target import Target
from mingle.methods.base_method import Progress
from mingle.state import MergeRun
from mingle.state.lock import HOLDER_FILE, LOCK_FILE
from mingle.weights import is_hub_id

BASE_FOLDER = "base"


class HfOptions(Options):
    """``with_base``: the base's files too; otherwise its hub id, or its path relative to the folder.

    For the model card: ``results`` of ``mingle eval --json`` or of a benchmark, ``repo``: the hub id, if any.
    """

    with_base: bool = False
    results: dict[str, Any] | None = Field(None, exclude=True)
    repo: str | None = None


class Hf(Target[HfOptions]):
    """A run of its own (``mingle.json``, ``steps/``), a model card, and with ``with_base`` ``base/``.

    Every command that reads a run reads it too. The fine-tuned checkpoints are not needed any more.
    """

    options_type = HfOptions

    def check(self, run: MergeRun) -> None:
        """Every run has this form. Raises CheckpointError for a wrong base, ConfigError for wrong results."""
        self._card(run)
        if not is_hub_id(run.base_source):
            run.base  # noqa: B018 – read and compared with its fingerprint

    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """Copies the history, the base if wanted, and writes the card."""
        copied = run.copy(folder, base=BASE_FOLDER if self.options.with_base else None, progress=progress)
        # Who wrote the copy may still stand there: names of machines do not leave with an export.
        for name in (LOCK_FILE, HOLDER_FILE):
            (folder / name).unlink(missing_ok=True)
        if self.options.with_base:
            copy_base(run.base.checkpoint, run.backbone, folder / BASE_FOLDER, progress)
        (folder / CARD_FILE).write_text(self._card(run), "utf-8")
        return {"base": copied.header["base"]}

    def _card(self, run: MergeRun) -> str:
        return model_card(run, results=self.options.results, repo=self.options.repo)


PLUGIN = Hf
