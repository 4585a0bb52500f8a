"""Which names the base must not see: whatever speaks of a class of one of the twenty tasks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mingle.suites._glyph.build_folder import Bag

MIN_COUNT = 10  # names with fewer images are left out
SHORT = 5  # words shorter than this count at the start or end of a part of a name, longer ones anywhere in it


class Excluder:
    """Says whether a name of an icon or of a glyph of the base speaks of a class of any task."""

    def __init__(self, spec: dict[str, Any]) -> None:
        words = set(spec["base"]["excluded_words"])
        for name, task in spec["tasks"].items():
            if task["kind"] != "glyph" and name not in ("mnist", "flags"):
                words |= {w for v in task["classes"].values() for w in ([v] if isinstance(v, str) else v)}
                words |= {class_name.replace(" ", "-") for class_name in task["classes"]}
        flat = {word.replace("-", "") for word in words}
        self.short = tuple(sorted(word for word in flat if len(word) < SHORT))
        self.long = re.compile("|".join(sorted(re.escape(word) for word in flat if len(word) >= SHORT)))
        self.scripts: dict[str, list[list[int]]] = spec["base"]["scripts"]

    def excludes(self, name: str) -> bool:
        """True for single letters and digits, for class words, and for glyphs outside the listed ranges."""
        script, _, code = name.partition("-")
        if script in self.scripts and re.fullmatch(r"[0-9a-f]+", code):
            return not any(first <= int(code, 16) <= last for first, last in self.scripts[script])
        tokens = [token for token in re.split(r"[-_]", name) if token]
        singles = {token.removesuffix("s") for token in tokens} | set(tokens)
        if any(len(token) == 1 or re.search(r"[0-9]", token) for token in tokens):
            return True
        if any(token.startswith(self.short) or token.endswith(self.short) for token in singles):
            return True
        return bool(self.long.search(name.replace("-", "").replace("_", "")))


def allowed(bag: Bag, spec: dict[str, Any]) -> np.ndarray:
    """Indices of the base's images whose name occurs often enough and speaks of no class."""
    excluder = Excluder(spec)
    good = np.array([not excluder.excludes(str(name)) for name in bag["names"]])
    return np.flatnonzero((good & (np.bincount(bag["labels"]) >= MIN_COUNT))[bag["labels"]])
