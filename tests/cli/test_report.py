"""``mingle report`` on stored results: every format, several files, a page only where it is asked for."""

import csv
import json

import pytest

from tests.report.made_tables import SMALL, demo, pivot


@pytest.fixture
def stored(tmp_path):
    """Two results files."""
    paths = [tmp_path / "demo.json", tmp_path / "pivot.json"]
    for path, make in zip(paths, (demo, pivot), strict=True):
        path.write_text(json.dumps(make(**SMALL)), "utf-8")
    return paths


def test_markdown_into_a_pipe_and_no_page(call, stored, tmp_path):
    code, out, err = call("report", stored[0])
    assert (code, err) == (0, "")
    assert "| *base alone* |" in out
    assert sorted(tmp_path.iterdir()) == sorted(stored)


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ("terminal", "Bold: best merge."),
        ("markdown", "**Bold**: best merge."),
        ("latex", r"\bottomrule"),
        ("csv", "row,bound,orders,"),
    ],
)
def test_every_format_prints_all_files(call, stored, form, part):
    code, out, _ = call("report", *stored, "--format", form)
    assert code == 0
    assert out.count(part) == 2


def test_csv_of_one_file_is_nothing_but_csv(call, stored):
    out = call("report", stored[0], "--format", "csv")[1]
    assert {len(row) for row in csv.reader(out.splitlines())} == {3 + 2 * 7}


def test_one_page_of_all_files(call, stored, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = call("report", *stored, "--format", "csv", "--out", page)
    assert (code, err.strip()) == (0, str(page))
    assert page.read_text("utf-8").count("<h1>") == 2
    assert str(page) not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1}', "expected results of schema 2, found 1"),
        ('{"schema": 2', "not a readable results file"),
        ("[]", "expected results of schema 2, found None"),
        ('{"schema": 2}', "missing; the file is not complete"),
    ],
)
def test_other_files_are_refused_before_anything_is_printed(call, stored, tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    code, out, err = call("report", stored[0], path)
    assert (code, out) == (2, "")
    assert message in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_a_missing_file(call, tmp_path):
    code, _, err = call("report", tmp_path / "none.json")
    assert code == 2
    assert "none.json: not a readable results file" in err


def test_unknown_format(call, stored):
    code, _, err = call("report", stored[0], "--format", "pdf")
    assert code == 2
    assert "pdf" in err
