"""The page: one HTML file that needs nothing else and asks for nothing; a chapter per results file."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mingle.report import curves, heatmap, plots
from mingle.report.canvas import SERIES, THEME, featured, series_colours, themed
from mingle.report.columns import columns_of, definitions
from mingle.report.formats import percent
from mingle.report.headline import headline, lead, sampling_error
from mingle.report.reading import (
    Results,
    Row,
    bounds,
    main_metric,
    merges,
    part,
    ranking,
    readable,
    with_part,
)
from mingle.report.table import Line, lines, notes, values_used

_HERE = Path(__file__).parent


class Panel(NamedTuple):
    """A plot with a heading; ``more`` is shown on request."""

    label: str
    colour: str
    plot: Markup
    more: Markup | None = None


def render_html(results: Sequence[Results]) -> str:
    """The report as one self-contained HTML page. Raises ConfigError for results of another schema."""
    found = [readable(each) for each in results]
    script = (_HERE / "report.js").read_text("utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chapter = environment.get_template("chapter.html.jinja")
    rendered = [chapter.render(_context(each)) for each in found]
    if len(found) > 1:
        rendered = [_own_ids(text, f"table-{i}") for i, text in enumerate(rendered, start=1)]
    return environment.get_template("report.html.jinja").render(
        chapters=[Markup(text) for text in rendered],
        titles=[f"{each['title']} · {each['suite']['name']}" for each in found],
        theme=THEME,
        style=Markup((_HERE / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write_report(results: Sequence[Results], path: Path) -> None:
    """Writes the page; a file that was there before stays until the new one is complete."""
    page = render_html(results)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, "utf-8", errors="replace")
    temporary.replace(path)


def _context(results: Results) -> dict[str, Any]:
    """All that the page says of one results file."""
    colours, table = series_colours(results), lines(results)
    gates, gate_scale = _gates(results, colours)
    plotted = [line for line in table if line.orders and colours[line.label] != "other"]
    return {
        "title": results["title"],
        "suite": results["suite"]["name"],
        "tasks": results["orders"][0]["tasks"],
        "seeds": [order["seed"] for order in results["orders"]],
        "created": results.get("created"),
        "headline": _unbroken(headline(results)),
        "lead": [_unbroken(sentence) for sentence in lead(results)],
        "columns": columns_of(results),
        "heat": _heat(table) if results["pivot"] else {},
        "lines": table,
        "ranked": sorted(plotted, key=lambda line: line.cells[0].mean or 0.0, reverse=True),
        "colours": colours,
        "pale": "other" in colours.values(),
        "notes": [*notes(results), *values_used(results)],
        "doubt": _doubt(results),
        "curves": [_curve(results, key) for key in results["curves"] if curves.curve_groups(results, key)],
        "steps": _steps(results),
        "floor": f"{100 * plots.accuracy_floor(results):.0f}",
        "matrices": _panels(
            with_part(merges(results), "matrix"), colours, lambda row: plots.accuracy_matrix(results, row)
        ),
        "gates": gates,
        "gate_scale": gate_scale,
        "costs": [_svg(curves.cost(results, key)) for key in curves.COSTS if key in results["columns"]],
        "energy": _panels(with_part(featured(results), "energy"), colours, plots.energy),
        "energy_parts": plots.ENERGY,
        "losses": _losses(results),
        "loss_legend": _loss_legend(results, colours),
        "examples": _examples(results),
        "settings": [_settings(row) for row in results["rows"]],
        "definitions": [(name, _typeset(formula), text) for name, formula, text in definitions(results)],
        "provenance": _provenance(results),
    }


def _own_ids(chapter: str, name: str) -> str:
    """A rendered chapter whose ids, and the references to them, are its own among other chapters."""
    return re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", chapter)


def _unbroken(sentence: str) -> str:
    """No line break between a number and its spread or unit."""
    return re.sub(r" (?=%|±|points)|(?<=±) ", "\N{NO-BREAK SPACE}", sentence)


def _typeset(formula: str) -> Markup:
    """``_i`` and ``_{i<T}`` as subscripts."""
    return Markup(re.sub(r"_(?:{([^}]*)}|(\w))", r"<sub>\1\2</sub>", str(escape(formula))))


def _svg(plot: str) -> Markup:
    """A plot for the page; matplotlib has escaped every name in it."""
    return Markup(themed(plot))


def _panels(rows: list[Row], colours: Mapping[str, str], plot: Callable[[Row], str]) -> list[Panel]:
    return [Panel(row["label"], colours[row["label"]], _svg(plot(row))) for row in rows]


def _steps(results: Results) -> list[Markup]:
    if not with_part(merges(results), "matrix"):
        return []
    return [_svg(plots.accuracy_over_steps(results, compact=compact)) for compact in (False, True)]


def _heat(table: list[Line]) -> dict[float, float]:
    """How strongly the cell of an accuracy is coloured: 0 for the lowest of the table, 1 for the highest."""
    values = [cell.mean for line in table for cell in line.cells if cell.mean is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return {value: (value - low) / (high - low or 1.0) for value in values}


def _curve(results: Results, key: str) -> tuple[Markup, list[tuple[str, str]]]:
    """The plot of an option, and the name and colour of its lines where there are several."""
    names = [name for name in curves.curve_groups(results, key) if name]
    legend = [(name, SERIES[i % len(SERIES)]) for i, name in enumerate(names)]
    return _svg(curves.sensitivity(results, key)), legend


def _gates(results: Results, colours: Mapping[str, str]) -> tuple[list[Panel], tuple[str, str]]:
    """Plots per method, and the gates of full colour: in the average over layers, and in single layers."""
    found = {row["label"]: part(row, "gates") for row in with_part(featured(results), "gates")}
    whole, single = (heatmap.gate_limit([*found.values()], per_layer=p) for p in (False, True))
    panels = [
        Panel(
            label,
            colours[label],
            _svg(heatmap.gate_summary(gates, whole, label)),
            _svg(heatmap.gate_layers(gates, single, label)),
        )
        for label, gates in found.items()
    ]
    return panels, (f"{whole:.2g}", f"{single:.2g}")


def _losses(results: Results) -> list[Markup]:
    if not with_part(featured(results), "losses"):
        return []
    return [_svg(plots.loss(results, task)) for task in range(len(results["orders"][0]["tasks"]))]


def _loss_legend(results: Results, colours: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Label, colour and dashes of every line in the plots of the loss."""
    dashes = [" ".join(map(str, dash)) for dash in plots.DASHES]
    rows = with_part(featured(results), "losses")
    return [(row["label"], colours[row["label"]], dashes[i % len(dashes)]) for i, row in enumerate(rows)]


def _doubt(results: Results) -> str | None:
    """How far chance alone moves the winner's ACC of a single order, in points; None where unknown."""
    samples, ranked = results.get("samples_per_task"), ranking(results)
    if not samples or not ranked or len(results["orders"]) > 1 or main_metric(results) != "acc":
        return None
    error = sampling_error(ranked[0], samples)
    return None if error is None else percent(error)


def _examples(results: Results) -> list[dict[str, Any]]:
    """Every example with what the bounds and the best merges say of it; None where a method says nothing."""
    shown = [*bounds(results), *featured(results)]
    said = {row["label"]: part(row, "examples") or {} for row in shown}
    seen: Counter[str] = Counter()
    found = []
    for example in results.get("examples") or ():
        task = example["task"]
        answers = {label: by_task[task][seen[task]] for label, by_task in said.items() if task in by_task}
        seen[task] += 1
        found.append({**example, "predictions": answers})
    return found


def _settings(row: Row) -> dict[str, Any]:
    used = {**(row.get("settings") or {})}
    seeds = {f"seed samples: {name}": value for name, value in (part(row, "seed_samples") or {}).items()}
    return {
        "label": row["label"],
        "method": row["method"],
        "preset": row["preset"],
        "values": [(name.replace("_", " "), _written(value)) for name, value in {**used, **seeds}.items()],
    }


def _provenance(results: Results) -> list[tuple[str, str]]:
    suite = results["suite"]
    prints = dict(suite.get("fingerprints") or {})
    entries: dict[str, Any] = {
        "command": results.get("command"),
        "created": results.get("created"),
        "suite": suite["name"],
        "backbone": suite.get("backbone"),
        "scored samples per task": results.get("samples_per_task"),
        **{f"order of seed {o['seed']}": " → ".join(o["tasks"]) for o in results["orders"]},
        "fingerprint of the base": prints.pop("base", None),
        "fingerprints of the checkpoints": ", ".join(
            f"{task} {found[:12]}" for task, found in prints.items()
        ),
        **{f"version of {name}": value for name, value in (results.get("versions") or {}).items()},
        **{f"machine: {name}": value for name, value in (results.get("machine") or {}).items()},
    }
    return [(name, _written(value)) for name, value in entries.items() if value not in (None, "")]


def _written(value: Any) -> str:  # noqa: ANN401 – any JSON value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
