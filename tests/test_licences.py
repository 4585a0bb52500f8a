"""What mingle is made with and ships: every package locked and listed, every licence one of those allowed."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mingle

from .licences import ALLOWED, ROOT, SHIPPED, allowed, licence, listed, locked

SUITES = Path(mingle.__file__).parent / "suites"
UNLOCKED = {"docs"}
"""Extras that only build the documentation."""


def test_every_locked_package_is_listed_with_an_allowed_licence():
    found = listed()
    assert {name: version for name, (version, _) in found.items()} == locked()
    assert [name for name, (_, stated) in found.items() if not allowed(stated)] == []


@pytest.mark.parametrize("name", locked())
def test_the_list_says_what_the_package_says(name):
    stated = licence(name)
    if stated is None:
        pytest.skip(f"{name} is not installed")
    assert listed()[name][1] == stated


def test_everything_that_development_needs_is_locked():
    """Also what packages need in turn, as far as they are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(r for n, rs in extras.items() if n not in UNLOCKED for r in rs)]
    names = {canonicalize_name(name) for name in locked()}
    waiting, seen = [(Requirement(text), "") for text in asked], set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not wanted or name == "mingle-merge" or (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in names | {"setuptools"}, f"{name} is not in constraints.txt"
        try:
            needed = [Requirement(text) for text in requires(requirement.name) or []]
        except PackageNotFoundError:
            continue
        waiting += [(each, extra) for each in needed for extra in ("", *requirement.extras)]
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("MIT", True),
        ("MIT AND PSF-2.0", True),
        ("Apache-2.0 OR GPL-2.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("AGPL-3.0-or-later", False),
        ("unknown", False),
    ],
)
def test_an_expression_is_allowed_where_it_can_be_met(expression, fits):
    assert allowed(expression, ALLOWED) == fits


def sources():
    """(source, licence, tasks whose shipped pictures show it) of the shipped suite."""
    for line in (SUITES / "glyph8" / "LICENSES.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) in (4, 6) and cells[0] not in ("source", "set", "package") and set(cells[0]) != {"-"}:
            terms, shown = cells[-3], cells[-2]
            yield (
                cells[0],
                re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", terms),
                shown.split(", ") if shown != "-" else [],
            )


def test_every_shipped_picture_has_a_source_under_an_allowed_licence():
    found = list(sources())
    assert [(name, terms) for name, terms, shown in found if shown and not _ships(terms)] == []
    tasks = json.loads((SUITES / "glyph8" / "suite.json").read_text("utf-8"))["tasks"]
    assert {task for _, _, shown in found for task in shown} == set(tasks)


def _ships(terms):
    return all(allowed(part, SHIPPED) for part in terms.split(" and "))


@pytest.mark.parametrize("suite", ["_dino", "_minilm", "glyph8"])
def test_every_suite_says_the_licences_of_its_data(suite):
    text = (SUITES / suite / "LICENSES.md").read_text("utf-8")
    assert "licence" in text
    if suite == "_minilm":
        from mingle.suites._minilm.recipe import TASKS

        assert [task for task in TASKS if not re.search(rf"\b{task}\b", text)] == []
