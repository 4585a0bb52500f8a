"""Licences of every locked package: ``python -m tests.licences`` writes docs/licences.md anew."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS, PAGE = ROOT / "constraints.txt", ROOT / "docs" / "licences.md"

ALLOWED = frozenset(
    {"0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"}
    | {"LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"}
)
"""Terms of packages that may be used beside Apache-2.0 code; BSD: a kind that the metadata leaves open."""

SHIPPED = ALLOWED | {"CC-BY-3.0", "CC-BY-4.0", "OFL-1.1", "Unlicense", "Bitstream-Vera", "public-domain"}
"""Terms of what shipped pictures show: renderings may be shipped, with the names of the authors."""

WORDS = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Bitstream Vera": "Bitstream-Vera",
    "public domain": "public-domain",
}
"""What metadata calls a licence, and its identifier."""

READ_BY_HAND = {"resvg-py": "MIT"}
"""Of packages whose metadata names no licence: what the file LICENSE in the wheel says."""

INTRODUCTION = """# Licences

Every package of `constraints.txt`, development tools included, with the licence that its own metadata states;
`BSD` where that does not say which. Written by `python -m tests.licences`; `pytest tests/test_licences.py`
fails for a package that is not listed, a version or a licence that changed, and a licence outside the list in
`tests/licences.py`. None of the packages is shipped with mingle.

Data that is shipped (suite `glyph8`): `src/mingle/suites/glyph8/LICENSES.md` lists every source with its
licence, and the same test reads it. Data of suites that are built on your machine stays there; the own
`LICENSES.md` of each says the terms ([glyph](glyph-suites.md), [minilm8 and dino8](real-suites.md)).

| package | version | licence |
|---|---|---|
"""


def locked():
    """Versions by name."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def licence(name):
    """The licence that an installed package states; None where it is not installed."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return READ_BY_HAND.get(name)
    text = (found.get("License") or "").strip().partition("\n")[0]
    classified = [
        entry.rpartition(" :: ")[2]
        for entry in found.get_all("Classifier") or []
        if entry.startswith("License :: OSI Approved :: ")
    ]
    stated = [found.get("License-Expression"), *([text] if len(text) < 40 else []), *classified]
    known = [WORDS.get(each, each) for each in stated if each]
    return next((each for each in known if allowed(each)), known[0] if known else READ_BY_HAND.get(name))


def allowed(expression, terms=ALLOWED):
    """Whether a licence expression can be met: all of what AND joins, one of what OR joins."""
    plain = WORDS.get(expression, expression)
    return any(
        all(part.strip(" ()") in terms for part in re.split(r" AND | and | WITH ", choice))
        for choice in re.split(r" OR ", plain)
    )


def listed():
    """(version, licence) by name, as the page has it."""
    rows = re.findall(r"^\| ([\w.-]+) \| ([\w.+]+) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: (version, stated) for name, version, stated in rows if name != "package"}


def page():
    """The page anew; a package that is not installed here keeps its row."""
    known = listed() if PAGE.exists() else {}
    rows = []
    for name, version in locked().items():
        stated = licence(name) or known.get(name, ("", "unknown"))[1]
        rows.append(f"| {name} | {version} | {stated} |\n")
    return INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
