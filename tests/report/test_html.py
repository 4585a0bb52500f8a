import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mingle.errors import ConfigError
from mingle.report import render_html, write_report

HOSTILE = '<script>alert("x")</script>\'"&$\\frac{1}$ 漢字 \x07😀'


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


def test_sections_in_order(page):
    order = "table steps matrices gates energy losses examples settings definitions provenance"
    assert Page(page).sections() == order.split()


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attrs in Page(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http://" not in rest
    assert "https://" not in rest
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_policy_forbids_requests_and_other_scripts(page):
    policy = next(
        a["content"] for t, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not [name for _, attrs in Page(page).tags for name in attrs if name.startswith("on")]


def test_every_plot_is_xml_with_a_description(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 2 + 6 + 4 + 2 + 2 + 8
    for svg in plots:
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") or root.get("aria-hidden")


def test_ids_are_unique_and_references_resolve(page):
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_hostile_names_are_text(small):
    small["suite"] = small["command"] = HOSTILE
    small["order"] = [HOSTILE, *small["order"][1:]]
    row = small["rows"][3]
    row |= {"label": HOSTILE, "method": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    row["gates"] |= {"inputs": small["order"], "experts": small["order"]}
    row["energy"][0]["task"] = HOSTILE
    small["examples"][0] |= {
        "task": HOSTILE,
        "truth": HOSTILE,
        "image": '"><script>',
        "predictions": {HOSTILE: "<b>"},
    }
    page = render_html(small)
    assert [tag for tag, _ in Page(page).tags].count("script") == 1
    assert "<script>alert" not in page
    assert HOSTILE in Page(page).text
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("part", ["gates", "energy", "losses", "examples"])
def test_a_section_without_data_is_left_out(small, part):
    for holder in (small, *small["rows"]):
        holder[part] = None
    page = Page(render_html(small))
    assert part not in page.sections()
    assert f"#{part}" not in [attrs.get("href") for _, attrs in page.tags]
    assert len(page.sections()) == 9


def test_only_what_is_required(small):
    row = small["rows"][2]
    kept = {k: row[k] for k in ("label", "method", "one_model", "matrix")} | {"metrics": {"acc": 0.5}}
    page = Page(
        render_html({k: small[k] for k in ("schema", "suite", "order", "individual")} | {"rows": [kept]})
    )
    assert page.sections() == ["table", "steps", "matrices", "settings", "definitions", "provenance"]
    assert "50.0\N{NO-BREAK SPACE}% mean accuracy" in page.text


def test_results_without_merges(small):
    small["rows"] = small["rows"][:2]
    assert "matrices" not in Page(render_html(small)).sections()


def test_right_and_wrong_do_not_depend_on_colour(small):
    small["examples"] = [
        {"task": "t", "image": "", "truth": "7", "predictions": {"average": "7", "mingle": "1"}},
    ]
    page = Page(render_html(small))
    marks = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("class") == "mark"]
    assert marks == ["right", "wrong"]
    assert "✓" in page.text
    assert "✗" in page.text


def test_provenance_and_settings_are_complete(page, made):
    text = Page(page).text
    values = (made["command"], made["base_fingerprint"], "2.13.0", "AVX2", "gate reduction", "held_out")
    for value in values:
        assert value in text


def test_write_report_replaces_the_page_with_the_same_bytes_every_time(small, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(small, path)
    assert path.read_text("utf-8") == render_html(small)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_schema_writes_nothing(results, tmp_path):
    results["schema"] = "one"
    with pytest.raises(ConfigError, match="expected schema 1, found 'one'"):
        write_report(results, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
