"""The page in a real browser: headings sort the table, nothing is reported as an error."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from mingle.report import render_html
from tests.report.made_tables import EVERY

CHROMIUM = shutil.which("chromium")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --dump-dom
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def opened(page, folder):
    """The page as the browser has it after its scripts ran, and what it wrote on its console."""
    path = folder / "page.html"
    path.write_text(page, "utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def clicking(page, *keys):
    """The page with a script that clicks headings, allowed by the page's own policy."""
    steps = "".join(f"document.querySelector('th[data-key={key}] button').click();" for key in keys)
    allowed = base64.b64encode(hashlib.sha256(steps.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{allowed}' ", 1)
    return page.replace("</body>", f"<script>{steps}</script></body>")


def labels(dom):
    return re.findall(r'<th scope="row" data-value="([^"]*)"', dom)


def test_sorting_works_and_the_policy_refuses_only_what_is_foreign(small, tmp_path):
    small["rows"] = small["rows"][:6]
    for row, mixed in zip(small["rows"][2:], (0.7, None, 0.5, 0.6), strict=True):
        row["mean"] |= {"mixed_acc": mixed}
    page = clicking(render_html([small]), "bwt", "mixed_acc", "mixed_acc")
    page = page.replace("</body>", "<script>document.body.innerHTML = ''</script></body>")
    dom, console = opened(page, tmp_path)
    assert labels(dom) == ["base alone", "individual models", "ties", "opcm", "average", "task arithmetic"]
    assert re.findall(r'<th[^>]*data-key="(\w+)"[^>]*aria-sort="(\w+)"', dom) == [("mixed_acc", "ascending")]
    assert len(console) == 1
    assert "Content Security Policy" in console[0]


@pytest.mark.parametrize("kind", [*EVERY, "several"])
def test_every_kind_of_page_is_quiet_and_sorts(pages, kind, tmp_path):
    """No error, no request that the policy would refuse; a click on a column sorts the highest first."""
    key = "clean" if kind == "pivot" else "acc"
    dom, console = opened(clicking(pages[kind], key), tmp_path)
    assert console == []
    table = re.search(r'<table class="sortable.*?</table>', dom, re.DOTALL)[0]
    merges = table[table.rindex("<tbody") :]
    first = re.findall(r'<td data-value="([^"]*)"', merges)[:: table.count("data-key")]
    values = [float(value) for value in first if value]
    assert len(values) > 2
    assert values == sorted(values, reverse=True)
    assert "" not in first[: len(values)]
