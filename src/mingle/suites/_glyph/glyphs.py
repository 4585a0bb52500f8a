"""Glyphs: which font files of which group have a character, and how it is drawn."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mingle.suites._glyph.build_folder import Array, BuildFolder
from mingle.suites._glyph.recipe import SOURCE_SIZE

INK, FACE = 38, 72  # of a source of SOURCE_SIZE: the longer side of a glyph's ink, and the font's size


@dataclass(frozen=True)
class FontFile:
    """One font file: where it is, the group it is split by, its Debian package and the characters it has."""

    path: Path
    group: str
    package: str
    characters: frozenset[int]


def font_files(place: BuildFolder, fonts: dict[str, Any]) -> list[FontFile]:
    """All usable font files of the listed packages; symbol and emoji faces are left out."""
    from fontTools.ttLib import TTFont, TTLibError

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of fonts that are slightly malformed
    group_of = {package: group for group, members in fonts["groups"].items() for package in members}
    found = []
    for package in sorted(fonts["packages"]):
        for path in sorted(place.unpacked(package).rglob("*")):
            if path.is_symlink() or path.suffix.lower() not in (".ttf", ".otf"):
                continue
            if re.search(r"(Emoji|Symbols|Math|Initials|Powerline)", path.name):
                continue
            try:
                with TTFont(path, lazy=True, fontNumber=0) as font:
                    characters = frozenset(font.getBestCmap() or ())
            except (TTLibError, AssertionError, KeyError):
                continue
            found.append(
                FontFile(path, group_of.get(package, package.removeprefix("fonts-")), package, characters)
            )
    return found


def draw(font: FontFile, character: str, side: int = SOURCE_SIZE) -> Array | None:
    """The glyph's ink as RGBA (white, alpha = ink), of one size for every font; None where it is empty."""
    larger = side / SOURCE_SIZE
    try:
        face = ImageFont.truetype(str(font.path), FACE * larger, layout_engine=ImageFont.Layout.BASIC)
        left, top, right, bottom = face.getbbox(character)
        width, height = int(right - left) + 8, int(bottom - top) + 8
        if not 10 * larger < max(width, height) < 400 * larger:
            return None
        image = Image.new("L", (width, height), 0)
        ImageDraw.Draw(image).text((4 - left, 4 - top), character, font=face, fill=255)
    except (OSError, ValueError):
        return None
    box = image.getbbox()
    if box is None:
        return None
    ink = image.crop(box)
    scale = INK * larger / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX
    )
    canvas = Image.new("L", (side, side), 0)
    canvas.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    alpha = np.asarray(canvas, dtype=np.uint8)
    return np.stack([np.full_like(alpha, 255)] * 3 + [alpha])
