"""The page: one HTML file that needs nothing else and asks for nothing."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mingle.report import heatmap, plots
from mingle.report.canvas import THEME, series_colours, themed
from mingle.report.formats import percent
from mingle.report.headline import headline, lead, ranking, standard_error
from mingle.report.reading import Results, Row, check, merges, with_part
from mingle.report.table import COLUMNS, DEFINITIONS, lines, notes

_HERE = Path(__file__).parent


class Panel(NamedTuple):
    """A plot with a heading; ``more`` is shown on request."""

    label: str
    colour: str
    plot: Markup
    more: Markup | None = None


def render_html(results: Results) -> str:
    """The report as one self-contained HTML page. Raises ConfigError for results of another schema."""
    check(results)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(_context(results))


def write_report(results: Results, path: Path) -> None:
    """Writes the page; a file that was there before stays until the new one is complete."""
    page = render_html(results)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, "utf-8", errors="replace")
    temporary.replace(path)


def _context(results: Results) -> dict[str, Any]:
    script = (_HERE / "report.js").read_text("utf-8")
    colours = series_colours(results)
    table = lines(results)
    gates, gate_scale = _gates(results, colours)
    return {
        "suite": results["suite"],
        "tasks": results["order"],
        "created": results.get("created"),
        "headline": _unbroken(headline(results)),
        "lead": [_unbroken(sentence) for sentence in lead(results)],
        "columns": COLUMNS,
        "lines": table,
        "ranked": sorted(table, key=lambda line: line.cells[0].value or 0.0, reverse=True),
        "colours": colours,
        "notes": notes(results),
        "doubt": _doubt(results),
        "steps": _steps(results),
        "floor": f"{100 * plots.accuracy_floor(results):.0f}",
        "matrices": _matrices(results, colours),
        "gates": gates,
        "gate_scale": gate_scale,
        "energy": _panels(with_part(results, "energy"), colours, plots.energy),
        "energy_parts": plots.ENERGY,
        "losses": _losses(results),
        "loss_legend": _loss_legend(results, colours),
        "examples": results.get("examples") or [],
        "settings": [_settings(row) for row in results["rows"]],
        "definitions": [(name, _typeset(text)) for name, text in DEFINITIONS],
        "provenance": _provenance(results),
        "theme": THEME,
        "style": Markup((_HERE / "report.css").read_text("utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _unbroken(sentence: str) -> str:
    """No line break between a number and its unit."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(" points", "\N{NO-BREAK SPACE}points")


def _typeset(formula: str) -> Markup:
    """``_i``, ``_{i<T}`` and ``^6`` as subscripts and superscripts."""
    text = re.sub(r"_(?:{([^}]*)}|(\w))", r"<sub>\1\2</sub>", str(escape(formula)))
    return Markup(re.sub(r"\^(\w)", r"<sup>\1</sup>", text))


def _svg(plot: str) -> Markup:
    """A plot for the page; matplotlib has escaped every name in it."""
    return Markup(themed(plot))


def _panels(rows: list[Row], colours: Mapping[str, str], plot: Callable[[Row], str]) -> list[Panel]:
    return [Panel(row["label"], colours[row["label"]], _svg(plot(row))) for row in rows]


def _steps(results: Results) -> tuple[Markup, Markup]:
    wide = plots.accuracy_over_steps(results)
    return _svg(wide), _svg(plots.accuracy_over_steps(results, compact=True))


def _matrices(results: Results, colours: Mapping[str, str]) -> list[Panel]:
    return _panels(merges(results), colours, lambda row: plots.accuracy_matrix(results, row))


def _gates(results: Results, colours: Mapping[str, str]) -> tuple[list[Panel], tuple[str, str]]:
    """Plots per method, and the gates of full colour: in the average over layers, and in single layers."""
    rows = with_part(results, "gates")
    whole, single = (heatmap.gate_limit([row["gates"] for row in rows], per_layer=p) for p in (False, True))
    panels = [
        Panel(
            row["label"],
            colours[row["label"]],
            _svg(heatmap.gate_summary(row["gates"], whole, row["label"])),
            _svg(heatmap.gate_layers(row["gates"], single, row["label"])),
        )
        for row in rows
    ]
    return panels, (f"{whole:.2g}", f"{single:.2g}")


def _losses(results: Results) -> list[Markup]:
    if not with_part(results, "losses"):
        return []
    return [_svg(plots.loss(results, task)) for task in range(len(results["order"]))]


def _loss_legend(results: Results, colours: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Label, colour and dashes of every line in the plots of the loss."""
    dashes = [" ".join(map(str, dash)) for dash in plots.DASHES]
    rows = with_part(results, "losses")
    return [(row["label"], colours[row["label"]], dashes[i % len(dashes)]) for i, row in enumerate(rows)]


def _doubt(results: Results) -> str | None:
    """How far chance alone moves the winner's ACC, in points; None where the number of samples is unknown."""
    samples, ranked = results.get("samples_per_task"), ranking(results)
    return percent(standard_error(ranked[0], samples)) if samples and ranked else None


def _settings(row: Row) -> dict[str, Any]:
    used = {**(row.get("settings") or {})}
    seeds = {f"seed samples: {name}": value for name, value in (row.get("seed_samples") or {}).items()}
    return {
        "label": row["label"],
        "method": row["method"],
        "preset": row.get("preset"),
        "values": [(name.replace("_", " "), _written(value)) for name, value in {**used, **seeds}.items()],
    }


def _provenance(results: Results) -> list[tuple[str, str]]:
    entries: dict[str, Any] = {
        "command": results.get("command"),
        "created": results.get("created"),
        "suite": results["suite"],
        "order of the tasks": " → ".join(results["order"]),
        "seed": results.get("seed"),
        "scored samples per task": results.get("samples_per_task"),
        "test samples per task": results.get("test_samples"),
        "fingerprint of the base": results.get("base_fingerprint"),
        **{f"version of {name}": value for name, value in (results.get("versions") or {}).items()},
        **{f"machine: {name}": value for name, value in (results.get("machine") or {}).items()},
    }
    return [(name, _written(value)) for name, value in entries.items() if value not in (None, "")]


def _written(value: Any) -> str:  # noqa: ANN401 – any JSON value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
