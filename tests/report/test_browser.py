"""The page in a real browser: headings sort the table, nothing is reported as an error."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from mingle.report import render_html

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
    small["rows"] += [small["rows"][2] | {"label": f"other {i}"} for i in range(2)]
    for row, mixed in zip(small["rows"][2:], (0.7, None, 0.5, 0.6), strict=True):
        row["metrics"] = row["metrics"] | {"mixed_acc": mixed}
    page = clicking(render_html(small), "bwt", "mixed_acc", "mixed_acc")
    page = page.replace("</body>", "<script>document.body.innerHTML = ''</script></body>")
    dom, console = opened(page, tmp_path)
    assert labels(dom) == ["base alone", "individual models", "other 0", "other 1", "average", "mingle"]
    assert re.findall(r'<th[^>]*data-key="(\w+)"[^>]*aria-sort="(\w+)"', dom) == [("mixed_acc", "ascending")]
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
