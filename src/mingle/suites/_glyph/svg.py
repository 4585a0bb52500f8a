"""Icons, emoji and flags: which of them show a class, and how they are rendered."""

import io
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mingle.suites._glyph.build_folder import Array
from mingle.suites._glyph.recipe import SOURCE_SIZE

PERMISSIVE = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "BSD-3-Clause",
    "Unlicense",
    "OFL-1.1",
}


@dataclass(frozen=True)
class Picture:
    """One rendered source: pixels, class, vendor, icon set or font package, and whether only alpha counts."""

    rgba: Array
    label: int
    vendor: str
    origin: str
    mono: bool


class Collection:
    """One icon set of the package."""

    def __init__(self, folder: Path, prefix: str, mono: bool, side: int = SOURCE_SIZE) -> None:
        self.prefix, self.mono, self.side = prefix, mono, side
        self.data: dict[str, Any] = json.loads(
            (folder / "json" / f"{prefix}.json").read_text(encoding="utf-8")
        )
        self.icons: dict[str, dict[str, Any]] = self.data["icons"]
        self.aliases = {k: v["parent"] for k, v in self.data.get("aliases", {}).items() if len(v) == 1}

    def resolve(self, name: str) -> str | None:
        """The icon that `name` stands for, itself or through one alias."""
        return (
            name
            if name in self.icons
            else self.aliases.get(name)
            if self.aliases.get(name) in self.icons
            else None
        )

    def render(self, name: str) -> Array | None:
        """RGBA pixels (4, S, S) of one icon, or None where nothing can be drawn."""
        import resvg_py

        icon = self.icons[name]
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        text = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{self.side}" height="{self.side}">{icon["body"]}</svg>'
        )
        try:
            raw = resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True)
        except ValueError:
            return None
        image = Image.open(io.BytesIO(bytes(raw))).convert("RGBA")
        pixels = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
        covered = (pixels[3] > 100).mean()
        return pixels if covered > 0.01 and not (self.mono and covered > 0.95) else None


@lru_cache(maxsize=1)
def licences(folder: Path) -> dict[str, dict[str, Any]]:
    """What the package says of every set: name, author, licence, category."""
    content: dict[str, dict[str, Any]] = json.loads((folder / "collections.json").read_text("utf-8"))
    return content


def permissive(folder: Path) -> list[str]:
    """Sets whose licence allows shipping renderings; logo sets are left out, they are made of letters."""
    return sorted(
        prefix
        for prefix, info in licences(folder).items()
        if info["license"].get("spdx") in PERMISSIVE and info.get("category") not in ("Logos", "Programming")
    )


def open_set(folder: Path, prefix: str, side: int = SOURCE_SIZE) -> Collection:
    """One set by its prefix."""
    return Collection(folder, prefix, not licences(folder)[prefix].get("palette", False), side)


def content(name: str, style_words: frozenset[str]) -> str:
    """An icon's name without the words that speak of its style: 'home-24-filled' -> 'home'."""
    tokens = [token for token in re.split(r"[-_]", name) if token]
    return "-".join(token for token in tokens if token not in style_words)


def family_of(prefix: str, families: dict[str, list[str]]) -> str:
    """The family (one author, or sets derived from one another) that a set belongs to."""
    return next((family for family, members in families.items() if prefix in members), prefix)


def emoji_names(alias: str, flags: bool) -> list[str]:
    """The spellings that emoji and flag sets use for one thing."""
    if not flags:
        return [alias]
    if len(alias) == 2:
        return [alias, f"{alias}-1x1", f"{alias}-4x3"]
    return [
        f"flag-for-{alias}",
        f"flag-for-flag-{alias}",
        f"flag-{alias}",
        f"{alias}-flag",
        alias.replace("-", "") + "flag",
    ]
