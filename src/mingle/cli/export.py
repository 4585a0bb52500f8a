"""Commands that hand a run on: files for other tools, a repository on the hub."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mingle.cli.console import Command, Json, megabytes, progress_bar, show
from mingle.cli.run import BaseNow, RunFolder

WithBase = Annotated[
    bool | None, typer.Option("--with-base", help="Put the base's own files in too, not just where it is.")
]
Results = Annotated[
    Path | None,
    typer.Option(help="Scores for the model card: of `mingle eval RUN --json`, or a bench results file."),
]


def export(
    run: RunFolder,
    to: Annotated[
        str | None, typer.Option(metavar="FORM", help="What to write  [default: list the forms].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for it  [default: RUN-FORM].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in that folder.")] = False,
    with_base: WithBase = None,
    results: Results = None,
    logits: Annotated[
        bool | None, typer.Option("--logits/--no-logits", help="onnx: an output of class logits per task.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="merged: task whose head is part of the model, where it has one.")
    ] = None,
    shard_mb: Annotated[
        float | None, typer.Option(help="merged: split weights into files of so many MB  [default: 5000].")
    ] = None,
    base: BaseNow = None,
    json: Json = False,
) -> None:
    """Write a run in a form that other tools load. The folder appears when all of it is written."""
    from mingle.export import TARGETS, export_run
    from mingle.state import MergeRun

    if to is None:
        abouts = {name: sys.modules[TARGETS.get(name).__module__].__doc__ or "" for name in TARGETS.names()}
        forms = {name: about.strip().replace("``", "`") for name, about in abouts.items()}
        show(forms, "\n".join(f"{name:<8}  {about}" for name, about in forms.items()), as_json=json)
        return
    given = {"with_base": with_base, "logits": logits, "task": task, "shard_mb": shard_mb}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if results is not None:
        options["results"] = _read(results)
    folder = out or run.with_name(f"{run.resolve().name}-{to}")
    with progress_bar() as progress:
        content = export_run(
            MergeRun.open(run, base=base), to, folder, options=options, force=force, progress=progress
        )
    files = content["files"]
    size = megabytes(sum(entry["size"] for entry in files.values()))
    lines = [f"{folder}: {to}, {len(files)} files, {size}"]
    lines += [f"  {note}" for note in content.get("notes", ())]
    show({"folder": str(folder), **content}, "\n".join(lines), as_json=json)


def push(
    run: RunFolder,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload  [default: dry run, nothing is sent].")] = False,
    public: Annotated[bool, typer.Option("--public", help="Anyone may see it  [default: private].")] = False,
    with_base: WithBase = None,
    results: Results = None,
    base: BaseNow = None,
    json: Json = False,
) -> None:
    """Show what a repository of this run would hold, with its model card; with --yes, upload it."""
    from mingle.export import push_run
    from mingle.state import MergeRun

    with progress_bar() as progress:
        done = push_run(
            MergeRun.open(run, base=base),
            repo,
            upload=yes,
            private=not public,
            with_base=bool(with_base),
            results=None if results is None else _read(results),
            progress=progress,
        )
    seen = "private" if done.private else "public"
    lines = [f"{megabytes(size):>12}  {name}" for name, size in done.files.items()]
    total = f"{repo} ({seen}): {len(done.files)} files, {megabytes(sum(done.files.values()))}"
    end = done.url or "dry run, nothing was sent; add --yes to upload"
    show(vars(done), "\n".join([done.card, *lines, total, end]), as_json=json)


def _read(results: Path) -> dict[str, Any]:
    """A results file of a benchmark, or what ``mingle eval --json`` printed. Raises ConfigError."""
    from mingle.benchmark import read_results
    from mingle.errors import ConfigError
    from mingle.weights import read_json

    value = read_json(results, ConfigError)
    return read_results(results) if "schema" in value else value


COMMANDS = (
    Command(export, "Example: `mingle export run --to hf --out merged --with-base`"),
    Command(push, "Example: `mingle push run user/name --with-base`, and once it looks right `--yes`"),
)
