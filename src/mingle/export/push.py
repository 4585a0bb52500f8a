"""A run to the hub: a dry run shows what would be there; nothing is sent unless it is asked for."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client

from mingle.errors import ConfigError, ExportError
from mingle.export.export import export_run
from mingle.export.folder import CARD_FILE, file_names
from mingle.files import exists
from mingle.methods.base_method import Progress, silent
from mingle.state import MergeRun

STALE = ["steps/*", "base/*", "heads/*"]
"""What an earlier push may have left that this one does not hold."""


@dataclass(frozen=True)
class Push:
    """What a push sends: the files with their sizes, the model card; ``url`` once it was sent."""

    repo: str
    private: bool
    files: dict[str, int]
    card: str
    url: str | None = None


def push_run(
    run: MergeRun,
    repo: str,
    *,
    upload: bool = False,
    private: bool = True,
    with_base: bool = False,
    results: Mapping[str, Any] | None = None,
    api: HfApi | None = None,
    progress: Progress = silent,
) -> Push:
    """Exports to ``hf`` in a temporary folder and, with ``upload``, sends it as one commit.

    Without ``upload`` nothing is asked of the network. Who sends is who is logged in (``hf auth login``).

    Raises ConfigError for what is no ``owner/name``; ExportError for a base that others could not open, a
    repository that is public and not meant to be, or the other way round, or a hub that refuses or is out
    of reach; all that `export_run` raises.
    """
    _check(run, repo, with_base=with_base)
    options = {"with_base": with_base, "results": results, "repo": repo}
    with tempfile.TemporaryDirectory(prefix="mingle-push-") as temporary:
        folder = Path(temporary) / "export"
        export_run(run, "hf", folder, options=options, progress=progress)
        files = {name: (folder / name).stat().st_size for name in file_names(folder)}
        card = (folder / CARD_FILE).read_text("utf-8")
        url = _upload(folder, repo, private, api or HfApi()) if upload else None
    return Push(repo, private, files, card, url)


def _check(run: MergeRun, repo: str, *, with_base: bool) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise ConfigError(f"repository: expected user/name, found {repo!r}")
    if not with_base and exists(run.base_source):
        raise ExportError(
            f"{run.path}: its base is a folder of this machine ({run.base_source}), where others could not "
            "find it; push it too (--with-base), or open the run with the base's hub id (--base)"
        )


def _upload(folder: Path, repo: str, private: bool, api: HfApi) -> str:
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if bool(api.repo_info(repo).private) != private:
            found, advice = (
                ("public", "to publish there say so (--public)")
                if private
                else ("private", "make it public in its settings, or leave out --public")
            )
            raise ExportError(
                f"{repo}: exists and is {found}, and nothing was sent; {advice}, or choose another name"
            )
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Merged model, exported by mingle",
            delete_patterns=STALE,
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{repo}: the hub did not take it ({reason}); check the connection, and "
            "log in (hf auth login) with a token that may write there"
        ) from error
    return str(commit.commit_url)
