"""Commands that score a run and predict with it."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any

import typer

from mingle.cli.console import Command, Json, progress_bar, settings_text, show
from mingle.cli.run import BaseNow, RunFolder, Track


def evaluate(
    run: RunFolder,
    suite: Annotated[str, typer.Option(help="Suite whose test data to score on: a name or a folder.")],
    samples: Annotated[
        int | None, typer.Option(min=1, help="Score at most that many per task  [default: all].")
    ] = None,
    base: BaseNow = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Score every step of a run on every task so far: accuracy matrix, ACC, BWT, FWT, normalised ACC."""
    from mingle.evaluation import evaluate_run, individual_accuracies, relative_metrics, scored_tasks
    from mingle.state import MergeRun
    from mingle.suites import open_suite
    from mingle.tracking import open_tracker, track_evaluation

    opened, chosen = MergeRun.open(run, base=base), open_suite(suite)
    chosen.check([task for task in opened.tasks if task in chosen.tasks])
    tests = scored_tasks(chosen, opened.tasks, opened.base, samples)
    follow = open_tracker(track, opened) if track else nullcontext()
    with follow as tracker, progress_bar() as progress:
        individual = individual_accuracies(chosen, opened.base, tests, progress)
        found = evaluate_run(opened, tests, progress=progress)
        own = [individual[task] for task in opened.tasks]
        found = replace(found, metrics={**found.metrics, **relative_metrics(found.matrix, own)})
        if tracker is not None:
            track_evaluation(tracker, found)
    result = found.as_dict()
    show({**result, "individual": individual}, _scores(result), as_json=json)


def predict(
    run: RunFolder,
    samples: Annotated[list[str], typer.Argument(help="Image files, or texts for a text model.")],
    task: Annotated[str, typer.Option(help="Task whose classes to choose from.")],
    base: BaseNow = None,
    json: Json = False,
) -> None:
    """Classify images or texts with the merged model."""
    from mingle.state import MergeRun

    opened = MergeRun.open(run, base=base)
    probabilities, classes = opened.predict(samples, task)
    found = [
        {
            "sample": sample,
            "class": classes[int(row.argmax())] if row.any() else None,
            "probability": float(row.max()),
        }
        for sample, row in zip(samples, probabilities, strict=True)
    ]
    text = "\n".join(f"{f['sample']}  {f['class'] or 'no class'}  {f['probability']:.1%}" for f in found)
    show(found, text, as_json=json)


def _scores(result: dict[str, Any]) -> str:
    tasks = result["tasks"]
    width = max(map(len, tasks))
    lines = ["accuracy (%) of every step (down) on every task so far (across)"]
    lines += [
        f"  {t + 1:>2} + {tasks[t]:<{width}}" + "".join(f"{100 * a:>7.1f}" for a in row)
        for t, row in enumerate(result["matrix"])
    ]
    names = {
        "acc": "ACC",
        "bwt": "BWT",
        "fwt": "FWT",
        "normalised_acc": "normalised ACC",
        "mixed_acc": "mixed ACC",
        "agnostic_acc": "task-agnostic ACC",
    }
    scores = (
        f"{name} {100 * result['metrics'][key]:.1f}"
        for key, name in names.items()
        if result["metrics"][key] is not None
    )
    return "\n".join(
        [
            *lines,
            "",
            "   ".join(scores),
            f"{result['method']} (preset {result['preset']}), {settings_text(result['settings'])}",
        ]
    )


COMMANDS = (
    Command(evaluate, "Example: `mingle eval run --suite glyph8`", ("eval",)),
    Command(predict, "Example: `mingle predict run --task mnist seven.png`"),
)
