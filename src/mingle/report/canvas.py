"""Drawing for a page: colours with a light and a dark value, and matplotlib figures as inline SVG.

Figures are painted in the light colours; ``themed`` turns these into CSS variables, so that one SVG
reads well on a light and on a dark page.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mingle.report.reading import Results, Row, bounds, done, merges, ranking

THEME = {
    "ink": ("#1b1f26", "#e7e9ec"),
    "muted": ("#5f6772", "#9ba3ae"),
    "rule": ("#dde0e5", "#363c46"),
    "band": ("#f1f3f6", "#22272f"),
    "low": ("#17549b", "#3f86d6"),
    "high": ("#c2540a", "#f08a3c"),
    "series-0": ("#0072b2", "#5aaee6"),
    "series-1": ("#d55e00", "#f58a45"),
    "series-2": ("#009e73", "#35c79c"),
    "series-3": ("#b0558b", "#dd93bf"),
    "series-4": ("#b58900", "#e3bd4a"),
    "series-5": ("#4b3f9e", "#a79bf0"),
    "series-6": ("#8a4a3a", "#cf9484"),
    "series-7": ("#5f7a00", "#a9c63a"),
    "other": ("#b9bfc8", "#555d69"),
    "kept": ("#2f6f8f", "#35799b"),
    "projection": ("#e0a030", "#e0a030"),
    "rank": ("#a5602b", "#ad6830"),
    "not_merged": ("#a9b0ba", "#a9b0ba"),
}
"""Name of a colour -> its value on a light and on a dark page. Each light value is used once."""

SERIES = tuple(name for name in THEME if name.startswith("series-"))

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mingle",
    "text.parse_math": False,
    "text.color": THEME["ink"][0],
    "font.size": 11.0,
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": THEME["rule"][0],
    "axes.labelcolor": THEME["muted"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": THEME["rule"][0],
    "ytick.color": THEME["rule"][0],
    "xtick.labelcolor": THEME["muted"][0],
    "ytick.labelcolor": THEME["muted"][0],
    "grid.color": THEME["rule"][0],
    "grid.linewidth": 0.8,
}


def paint(name: str) -> str:
    """A colour of the theme, as figures are painted with it."""
    return THEME[name][0]


def featured(results: Results) -> list[Row]:
    """The merges that get a colour of their own: all, or the best where there are more than colours."""
    rows = [row for row in merges(results) if done(row)]
    if len(rows) > len(SERIES):
        best = ranking(results)[: len(SERIES)]
        rows = [row for row in rows if any(row is other for other in best)]
    return rows


def series_colours(results: Results) -> dict[str, str]:
    """The name of the colour of each label, the same in all plots; bounds are grey, the rest is pale."""
    colours = {row["label"]: "other" for row in merges(results)}
    colours |= {row["label"]: "muted" for row in bounds(results)}
    return colours | {row["label"]: name for row, name in zip(featured(results), SERIES, strict=False)}


def short(name: str, limit: int = 15) -> str:
    """A name as it is written in a plot: printable, on one line, not too long."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip(" _-") + "…"


def draw(width: float, height: float, label: str, content: Callable[[Figure], None]) -> str:
    """A figure of that size in CSS pixels as an SVG element; ``label`` is read to those who cannot see it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The browser's font draws the text; matplotlib's own font only has to estimate its size.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        content(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _element(buffer.getvalue(), width, height, label)


def axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in CSS pixels, counted from the upper left corner."""
    full_width, full_height = figure.get_size_inches() * 72
    bottom = full_height - top - height
    return figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places moved as little as it takes to keep them a gap apart, in the order they came in."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(200):
        for i, (low, high) in enumerate(pairwise(moved)):
            lack = gap - (high - low)
            if lack > 0:
                moved[i] -= lack / 2
                moved[i + 1] += lack / 2
    back = sorted(range(len(order)), key=order.__getitem__)
    return [moved[i] for i in back]


def themed(svg: str) -> str:
    """The SVG with the theme's colours as CSS variables."""
    for name, (light, _) in THEME.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg


def _element(document: str, width: float, height: float, label: str) -> str:
    """A whole SVG file as an element for a page: own root, ids that are unique on the page, no metadata."""
    inner = document[document.index(">", document.index("<svg ")) + 1 : document.rindex("</svg>")]
    inner = re.sub(r"\s*<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", inner))
    prefix = hashlib.sha256(f"{label}{inner}".encode()).hexdigest()[:8]

    def keep(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    inner = re.sub(r' id="([^"]*)"', keep, inner)
    inner = re.sub(r"(href=\"|url\()#", rf"\g<1>#{prefix}-", inner)
    root = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" '
        f'role="img" aria-label="{escape(short(label, 200))}">'
    )
    return f"{root}{inner}</svg>"
