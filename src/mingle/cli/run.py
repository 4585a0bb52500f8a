"""Commands that create, extend, read and check a run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from mingle.cli.console import (
    Command,
    Json,
    megabytes,
    progress_bar,
    seed_warnings,
    settings_text,
    show,
)
from mingle.cli.step_report import budget_line, described, warning_lines

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]
Track = Annotated[
    str | None,
    typer.Option(help="Log to tensorboard:FOLDER or mlflow:FOLDER; needs the extra of that name."),
]
Templates = Annotated[
    Path | None,
    typer.Option(help="Prompts around the class names, {} stands for the name  [default: a photo of a {}.]."),
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for another process that is writing to the run.")
]
BaseNow = Annotated[str | None, typer.Option("--base", help="Where the base is now, if it has moved.")]


def init(
    run: RunFolder,
    base: Annotated[str, typer.Option(help="Pretrained model: folder, hub id, or suite:base.")],
    method: Annotated[str | None, typer.Option(help="Merging method  [default: mingle].")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named options of the method, e.g. reference or paper.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML: method, preset, backbone, seed, options.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Family of the models  [default: clip].")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random draw follows from it  [default: 42].")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Bound on all experts together: ranks in every Linear (48), or MB (20MB)."),
    ] = None,
    json: Json = False,
) -> None:
    """Start a run: choose the base and the method."""
    from mingle.state import MergeRun, RunConfig

    given = {"method": method, "preset": preset, "backbone": backbone, "seed": seed}
    chosen = RunConfig.load(config, {key: value for key, value in given.items() if value is not None})
    options = chosen.options | ({} if budget is None else {"budget": budget})
    created = MergeRun.create(run, base, **chosen.model_dump() | {"options": options})
    header = dict(created.header)
    text = f"{run}: started, method {chosen.method} (preset {chosen.preset}), base {base}"
    show(header, f"{text}\n{settings_text(header['settings'])}", as_json=json)


def add(
    run: RunFolder,
    checkpoint: Annotated[
        str, typer.Argument(help="Fine-tuned model or LoRA adapter: folder, hub id, file, or suite:task.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the task  [default: the checkpoint's].")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Unlabelled samples: folder of images, .safetensors, .npz or suite:task."),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="Class head (.safetensors)  [default: head.safetensors beside the checkpoint]."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names instead of a head: one per line, or a JSON list (.json)."),
    ] = None,
    templates: Templates = None,
    base: BaseNow = None,
    track: Track = None,
    wait: Wait = 0,
    json: Json = False,
) -> None:
    """Merge one more checkpoint. A failure or a kill at any moment leaves the run as it was."""
    from mingle.backbones import read_names
    from mingle.state import MergeRun
    from mingle.tracking import open_tracker, track_step

    names = read_names(classes) if classes else None
    prompts = read_names(templates) if templates else None
    with ExitStack() as stack, seed_warnings():
        stack.enter_context(_alone(run, wait))
        opened = MergeRun.open(run, base=base)
        tracker = stack.enter_context(open_tracker(track, opened) if track else nullcontext())
        progress = stack.enter_context(progress_bar())
        step = opened.add(
            checkpoint,
            name=name,
            seeds=seeds,
            head=head,
            classes=names,
            templates=prompts,
            progress=progress,
        )
        if tracker is not None:
            track_step(tracker, opened, step.task)
    info = opened.info(step.task)
    text = f"{step.task}: merged as step {len(opened.tasks)} in {info['seconds']:.1f} s"
    show(info, "\n".join([text, *described(info["report"])]), as_json=json)


def log(run: RunFolder, json: Json = False) -> None:
    """List the merged tasks, oldest first."""
    from mingle.state import History

    opened = History.open(run)
    steps = [opened.info(task) for task in opened.tasks]
    entries = [
        {"step": number, **{key: info[key] for key in ("task", "created", "seconds", "checkpoint")}}
        for number, info in enumerate(steps, start=1)
    ]
    lines = [
        f"{e['step']:>3}  {e['task']:<24} {e['created']}  {e['seconds']:>7.1f} s  "
        f"{e['checkpoint']['fingerprint'][:12]}  {e['checkpoint']['source']}"
        for e in entries
    ]
    show(entries, "\n".join(lines) or f"{run}: nothing merged yet", as_json=json)


def show_run(
    run: RunFolder,
    task: Annotated[str | None, typer.Argument(help="Only the step of this task.")] = None,
    json: Json = False,
) -> None:
    """Show method, options, base and size of a run, or all about one of its steps."""
    from mingle.state import History

    opened = History.open(run)
    if task is not None:
        info = opened.info(task)
        checkpoint = info["checkpoint"]
        lines = [
            f"task        {info['task']} ({len(info['classes'] or [])} classes)",
            f"checkpoint  {checkpoint['source']} ({checkpoint['fingerprint'][:12]})",
            *described(info["report"]),
            *warning_lines(info["report"]),
        ]
        show(info, "\n".join(lines), as_json=json)
        return
    header = dict(opened.header)
    value = {**header, "tasks": list(opened.tasks), "bytes": opened.size_bytes()}
    lines = [
        f"run       {run} ({megabytes(value['bytes'])})",
        f"method    {header['method']} (preset {header['preset']}), seed {header['seed']}",
        f"base      {header['base']['source']} ({header['base']['fingerprint'][:12]})",
        f"tasks     {', '.join(opened.tasks) or 'none yet'}",
        settings_text(header["settings"]),
    ]
    if opened.tasks and "budget" in (report := opened.info(opened.tasks[-1])["report"]):
        lines.insert(-1, budget_line(report["budget"]))
    show(value, "\n".join(lines), as_json=json)


def verify(run: RunFolder, json: Json = False) -> None:
    """Read every byte and compare it with its hash. Exit code 1 if anything is damaged."""
    from mingle.state import History

    problems = History.open(run, check_files=False).verify()
    text = "\n".join(problems) if problems else f"{run}: whole, every file matches its hash"
    show({"whole": not problems, "problems": problems}, text, as_json=json)
    raise typer.Exit(1 if problems else 0)


def undo(run: RunFolder, wait: Wait = 0, json: Json = False) -> None:
    """Drop the newest step; the run is then as it was before that task."""
    from mingle.state import History

    with _alone(run, wait):
        opened = History.open(run, check_files=False)
        task = opened.undo()
    left = ", ".join(opened.tasks) or "none"
    show({"undone": task, "tasks": list(opened.tasks)}, f"{task}: undone; left: {left}", as_json=json)


@contextmanager
def _alone(run: Path, wait: float) -> Iterator[None]:
    """While it lasts no other process writes to the run. Raises RunLockedError after ``wait`` seconds."""
    from mingle.errors import RunLockedError
    from mingle.state import History

    waiting = History.open(run, check_files=False)
    with ExitStack() as stack:
        try:
            stack.enter_context(waiting.lock())
        except RunLockedError as error:
            if not wait:
                raise
            typer.echo(f"mingle: {error} … waiting for up to {wait:g} s", err=True)
            stack.enter_context(waiting.lock(wait))
        yield


COMMANDS = (
    Command(init, "Example: `mingle init run --base glyph8:base --method mingle --preset reference`"),
    Command(add, "Example: `mingle add run glyph8:mnist --name mnist --seeds glyph8:mnist`"),
    Command(log, "Example: `mingle log run`"),
    Command(show_run, "Example: `mingle show run mnist`", ("show",)),
    Command(verify, "Example: `mingle verify run`"),
    Command(undo, "Example: `mingle undo run`"),
)
