"""The model card: what a run is made of, how it was made, and how to load it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mingle.errors import ConfigError, MingleError, translated
from mingle.files import YAML_LIMIT, exists, expanded, parse_yaml, read_text
from mingle.state import MergeRun
from mingle.state.stored_step import public_name
from mingle.suites import locate
from mingle.weights import is_hub_id, read_json

UNKNOWN = "unknown"
METRICS = {
    "acc": "ACC, mean accuracy over the tasks",
    "bwt": "BWT, backward transfer",
    "fwt": "FWT, forward transfer",
    "normalised_acc": "normalised ACC, relative to the individual models",
    "mixed_acc": "mixed ACC, samples of all tasks in the same batches",
    "agnostic_acc": "task-agnostic ACC, over the classes of all tasks",
}


def model_card(run: MergeRun, *, results: Mapping[str, Any] | None = None, repo: str | None = None) -> str:
    """README.md of a run: YAML front matter for the hub, then base, tasks, settings, scores and licences.

    ``results``: of ``mingle eval --json``, or of a benchmark that has a row of this run's method, preset and
    options. Raises ConfigError for results of something else.
    """
    header, steps = run.header, [run.info(task) for task in run.tasks]
    source = str(run.base_source)
    tasks = [
        {
            "name": info["task"],
            "classes": None if info["classes"] is None else len(info["classes"]),
            "checkpoint": public_name(info["checkpoint"]["source"]),
            "fingerprint": info["checkpoint"]["fingerprint"],
            "created": info["created"],
            "versions": info["versions"],
            "licence": licence(info["checkpoint"]["source"]),
        }
        for info in steps
    ]
    base = {
        "name": public_name(source),
        "fingerprint": header["base"]["fingerprint"],
        "licence": licence(source),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: `_cell` escapes what could be taken for it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja").render(
        front=_front_matter(run, base, tasks),
        title=(repo or run.path.resolve().name).rpartition("/")[2],
        load=repo or "FOLDER",
        header=header,
        base=base,
        tasks=tasks,
        scores=_scores(run, results) if results is not None else None,
        sha256=run.fingerprint,
    )


def licence(source: str) -> str:
    """``license`` of the front matter of a model's README.md, or of the suite.json beside it; else unknown.

    In a suite.json, what ``licenses`` says of the model's folder comes before ``license``, the suite's.
    Nothing is fetched: of a hub id only what was fetched before is read.
    """
    try:
        located = str(locate(source))
    except MingleError:
        return UNKNOWN  # of a suite that is not on this machine
    folder = expanded(located)
    if exists(folder):
        folder = folder if folder.is_dir() else folder.parent
        return _of_card(folder / "README.md") or _of_suite(folder) or UNKNOWN
    if is_hub_id(located):
        cached = try_to_load_from_cache(located, "README.md")
        return (_of_card(Path(cached)) if isinstance(cached, str) else None) or UNKNOWN
    return UNKNOWN


def _of_card(path: Path) -> str | None:
    try:
        found = re.match(r"---[ \t]*\n(.*?)\n---", read_text(path, YAML_LIMIT), re.DOTALL)
        front = parse_yaml(found[1]) if found else None
    except (OSError, ValueError):
        return None
    stated = front.get("license") if isinstance(front, dict) else None
    return stated if isinstance(stated, str) else None


def _of_suite(part: Path) -> str | None:
    path = part.parent / "suite.json"
    suite = read_json(path) if path.is_file() else {}
    parts = suite.get("licenses")
    own = parts.get(part.name) if isinstance(parts, dict) else None
    stated = suite.get("license") if own is None else own
    return stated if isinstance(stated, str) else None


def _front_matter(run: MergeRun, base: Mapping[str, str], tasks: list[dict[str, Any]]) -> str:
    stated = {base["licence"], *(task["licence"] for task in tasks)}
    # The hub's identifier of a licence that is on none of its lists is "other".
    one = next(iter(stated)) if len(stated) == 1 else UNKNOWN if UNKNOWN in stated else "other"
    front: dict[str, Any] = {
        "library_name": "mingle",
        "license": one,
        "tags": [
            "mingle",
            "model-merging",
            "continual-learning",
            run.header["method"],
            run.header["backbone"],
        ],
    }
    if is_hub_id(run.base_source):
        front["base_model"] = str(run.base_source)
        front["base_model_relation"] = "merge"
    front["tags"] = list(dict.fromkeys(front["tags"]))
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()


def _scores(run: MergeRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of an evaluation of this run, or means of a benchmark's row of the same method and options."""
    with translated(ConfigError, "results: not what mingle wrote"):
        return _of_benchmark(run, results) if "rows" in results else _of_evaluation(run, results)


def _of_evaluation(run: MergeRun, results: Mapping[str, Any]) -> dict[str, Any]:
    stated = {key: results.get(key) for key in ("method", "preset", "tasks", "settings")}
    own = {**{key: run.header[key] for key in ("method", "preset", "settings")}, "tasks": list(run.tasks)}
    other = [key for key, value in own.items() if stated[key] != value]
    if other or not isinstance(results.get("metrics"), dict):
        raise ConfigError(
            f"results: expected those of mingle eval {run.path} --json; {', '.join(other) or 'metrics'} "
            "differ: they are of something else"
        )
    last = dict(zip(results["tasks"], results["matrix"][-1], strict=True))
    return {
        "origin": f"this run, at most {results['samples_per_task']} test samples per task",
        "metrics": _named(results["metrics"], {}),
        "tasks": [(task, f"{100 * value:.1f}") for task, value in last.items()],
    }


def _of_benchmark(run: MergeRun, results: Mapping[str, Any]) -> dict[str, Any]:
    header = run.header
    for row in results["rows"]:
        named = (row["method"], row["preset"], row["settings"])
        changed = row["corruption"] or row.get("variation")
        if named == (header["method"], header["preset"], header["settings"]) and not changed:
            orders = sum(cell["status"] == "done" for cell in row["cells"])
            return {
                "origin": f"the same method and options on suite {results['suite']['name']}: mean ± standard "
                f"deviation over {orders} task orders, not this run itself",
                "metrics": _named(row["mean"], row["std"]),
                "tasks": [],
            }
    raise ConfigError(
        f"results: no row of method {header['method']!r}, preset {header['preset']!r} with the options of "
        f"{run.path}; pass the output of: mingle eval {run.path} --json"
    )


def _named(values: Mapping[str, float | None], spread: Mapping[str, float | None]) -> list[tuple[str, str]]:
    found = ((words, values.get(key), spread.get(key)) for key, words in METRICS.items())
    return [
        (words, f"{100 * value:.1f}" + (f" ± {100 * std:.1f}" if std is not None else ""))
        for words, value, std in found
        if value is not None
    ]


def _cell(value: object) -> str:
    """A value inside a table: one line, no cell or tag of its own."""
    text = "—" if value is None else " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
