import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mingle.errors import ConfigError
from mingle.report import render_html, write_report
from tests.report import made
from tests.report.made_tables import EVERY, SMALL, demo, methods, pivot, two_curves

HOSTILE = '<script>alert("x")</script>\'"&$\\frac{1}$ 漢字 \x07😀'
DETAILS = "steps matrices gates energy losses examples settings definitions provenance"
SECTIONS = {
    "demo": f"table cost {DETAILS}",
    "methods": f"table cost {DETAILS}",
    "sweep": f"table curves {DETAILS}",
    "two_curves": f"table curves cost {DETAILS}",
    "pivot": f"table {DETAILS}",
    "costs": f"table cost {DETAILS}",
}
ALL = [*EVERY, "several"]


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] not in ("script", "style"):
            self.text += data

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


@pytest.mark.parametrize("kind", EVERY)
def test_sections_in_order(pages, kind):
    assert Page(pages[kind]).sections() == SECTIONS[kind].split()


def test_an_option_that_none_of_the_chosen_rows_varies_has_no_plot():
    results = two_curves(**SMALL)
    assert render_html([{**results, "curves": ["rank", "steps"]}]) == render_html([results])
    assert "curves" not in Page(render_html([{**results, "curves": ["steps"]}])).sections()


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_loaded_from_elsewhere(pages, kind):
    for tag, attrs in Page(pages[kind]).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", pages[kind])
    assert "http://" not in rest
    assert "https://" not in rest
    assert "@import" not in pages[kind]
    assert set(re.findall(r"url\((.)", pages[kind])) <= {"#"}


def test_policy_forbids_requests_and_other_scripts(pages):
    tags = Page(pages["several"]).tags
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]


@pytest.mark.parametrize("kind", ALL)
def test_every_plot_is_xml_with_a_description(pages, kind):
    plots = re.findall(r"<svg.*?</svg>", pages[kind], re.DOTALL)
    assert len(plots) > 8
    for svg in plots:
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") or root.get("aria-hidden")


@pytest.mark.parametrize("kind", ALL)
def test_ids_are_unique_and_references_resolve(pages, kind):
    """Also with the same results twice on one page."""
    ids = re.findall(r'\sid="([^"]+)"', pages[kind])
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', pages[kind]))
    assert references
    assert references <= set(ids)


def test_several_results_are_chapters_of_one_page(pages):
    page = Page(pages["several"])
    assert [tag for tag, _ in page.tags].count("h1") == 3
    assert {"table-1-table", "table-2-table", "table-3-table"} <= set(page.sections())
    assert "Corrupted seeds and test images, severity 5 · glyph8" in page.text


def test_hostile_names_are_text(small):
    small["title"] = small["suite"]["name"] = small["command"] = HOSTILE
    row = small["rows"][6]
    first = row["cells"][0]
    names = [HOSTILE, first["tasks"][1]]
    small["orders"][0]["tasks"] = first["tasks"] = names
    for bound in small["bounds"].values():
        bound[HOSTILE] = 0.5
    row |= {"label": HOSTILE, "method": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    first["gates"] |= {"inputs": names, "experts": names}
    first["energy"][0]["task"] = HOSTILE
    first["examples"] = {HOSTILE: ["<b>"]}
    small["examples"] = [{"task": HOSTILE, "truth": HOSTILE, "image": '"><script>'}]
    small["rows"][5] = made.fail(small["rows"][5], [42], HOSTILE)
    page = render_html([small])
    assert [tag for tag, _ in Page(page).tags].count("script") == 1
    assert "<script>alert" not in page
    assert HOSTILE in Page(page).text
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("part", ["gates", "energy", "losses", "examples"])
def test_a_section_without_data_is_left_out(small, part):
    small["rows"] = [*small["rows"][:3], small["rows"][6]]
    for holder in (small, *(cell for row in small["rows"] for cell in row["cells"])):
        holder[part] = None
    page = Page(render_html([small]))
    assert page.sections() == [name for name in SECTIONS["demo"].split() if name != part]
    assert f"#{part}" not in [attrs.get("href") for _, attrs in page.tags]


def test_results_without_merges(small):
    small["rows"] = small["rows"][:2]
    sections = Page(render_html([small])).sections()
    assert "matrices" not in sections
    assert "steps" not in sections


def test_results_where_all_failed():
    found = methods((42, 43), **SMALL)
    found["rows"] = [made.fail(row, (42, 43), "no memory") for row in found["rows"]]
    found["bounds"] = {"base": None, "individual": None}
    page = Page(render_html([found]))
    assert "orders 42, 43: no memory." in page.text
    assert page.text.count("failed") == len(found["rows"])
    assert not {"steps", "matrices", "gates"} & set(page.sections())


def test_only_the_best_have_colours_where_rows_are_many(pages):
    assert "The best 8 merges have colours of their own" in Page(pages["methods"]).text
    assert "colours of their own" not in Page(pages["demo"]).text


def test_a_pivot_is_a_heat_table(pages):
    heat = [float(x) for x in re.findall(r"--heat:([\d.]+)", pages["pivot"])]
    assert (min(heat), max(heat)) == (0, 1)
    assert len(heat) == 5 * 9


def test_right_and_wrong_do_not_depend_on_colour(small):
    small["rows"] = small["rows"][2:4]
    task = small["orders"][0]["tasks"][0]
    small["examples"] = [{"task": task, "image": "", "truth": "7"}]
    for row, said in zip(small["rows"], "71", strict=True):
        row["cells"][0]["examples"] = {task: [said]}
    page = Page(render_html([small]))
    marks = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("class") == "mark"]
    assert marks == ["right", "wrong"]
    assert "✓" in page.text
    assert "✗" in page.text


def test_examples_of_a_task_keep_their_order(small):
    small["rows"] = small["rows"][2:3]
    task = small["orders"][0]["tasks"][0]
    small["examples"] = [{"task": task, "image": "", "truth": truth} for truth in "78"]
    small["rows"][0]["cells"][0]["examples"] = {task: ["7", "9"]}
    marks = [a["aria-label"] for _, a in Page(render_html([small])).tags if a.get("class") == "mark"]
    assert marks == ["right", "wrong"]


def test_provenance_and_settings_are_complete(pages):
    results, text = demo(**SMALL), Page(pages["demo"]).text
    prints = results["suite"]["fingerprints"]
    values = (
        "mingle bench made",
        prints["base"],
        "2.13.0",
        "AVX2",
        "gate reduction",
        "held_out",
        "order of seed 42",
    )
    for value in values:
        assert value in text
    for row in results["rows"]:
        assert row["label"] in text


def test_write_report_replaces_the_page_with_the_same_bytes_every_time(small, pages, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report([small], path)
    assert path.read_text("utf-8") == pages["demo"]
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_schema_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="expected schema 2, found 'one'"):
        write_report([pivot(**SMALL), demo(**SMALL) | {"schema": "one"}], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
