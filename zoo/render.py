"""Render the sources of the eight tasks and the base's own training images, once.

`sources/base.npz` has the base's images, each with a name that speaks of no class of any task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from common import base_images, eight, parser, timed
from mingle.suites._build.draws import SEED
from mingle.suites._glyph.build_folder import Array, Bag, BuildFolder, save_bag
from mingle.suites._glyph.glyphs import FontFile, draw
from mingle.suites._glyph.recipe import recipe
from mingle.suites._glyph.render import Material, render
from mingle.suites._glyph.svg import Collection, content
from names import Excluder


def base_icons(sets: list[Collection], spec: dict[str, Any]) -> tuple[list[Array], list[str], list[bool]]:
    """Icons of other names, a seeded choice of at most `icons_per_name` for each name."""
    style, excluder = frozenset(spec["style_words"]), Excluder(spec)
    by_name: dict[str, list[tuple[Collection, str]]] = {}
    for one in sets:
        for name in sorted(one.icons):
            word = content(name, style)
            if word and not excluder.excludes(name):
                by_name.setdefault(word, []).append((one, name))
    rng = np.random.default_rng([SEED, 3])
    images, names, mono = [], [], []
    for word in sorted(by_name):
        if len(by_name[word]) < spec["base"]["names_min"]:
            continue
        for index in rng.permutation(len(by_name[word]))[: spec["base"]["icons_per_name"]]:
            one, name = by_name[word][index]
            rgba = one.render(name)
            if rgba is not None:
                images.append(rgba)
                names.append(word)
                mono.append(one.mono)
    return images, names, mono


def base_glyphs(fonts: list[FontFile], spec: dict[str, Any]) -> tuple[list[Array], list[str]]:
    """Glyphs of other scripts and symbols, one name per code point."""
    images, names = [], []
    for script, ranges in spec["base"]["scripts"].items():
        for code in [code for first, last in ranges for code in range(first, last + 1)]:
            having = [font for font in fonts if code in font.characters]
            rng = np.random.default_rng([SEED, 4, code])
            for index in rng.permutation(len(having))[: 2 * spec["base"]["icons_per_name"]]:
                glyph = draw(having[index], chr(code))
                if glyph is not None:
                    images.append(glyph)
                    names.append(f"{script}-{code:x}")
    return images, names


def render_base(place: BuildFolder, spec: dict[str, Any], material: Material) -> None:
    """The base's training images."""
    images, names, mono = base_icons(material.sets, spec)
    glyphs, glyph_names = base_glyphs(material.fonts, spec)
    all_names = sorted(set(names) | set(glyph_names))
    index = {name: number for number, name in enumerate(all_names)}
    labels = np.array([index[name] for name in [*names, *glyph_names]])
    print(f"base: {len(images)} icons, {len(glyphs)} glyphs, {len(all_names)} names", flush=True)
    save_bag(
        base_images(place),
        {
            "rgba": np.stack([*images, *glyphs]),
            "labels": labels,
            "names": np.array(all_names),
            "mono": np.array([*mono, *[True] * len(glyphs)]),
        },
    )


def report(bag: Bag) -> None:
    """Print how many sources are on each side."""
    fewest = [int(np.bincount(bag["labels"][bag["held"] == side]).min()) for side in (False, True)]
    vendors = [len(set(bag["vendor"][bag["held"] == side].tolist())) for side in (False, True)]
    print(
        f"  train {int((~bag['held']).sum())}, held out {int(bag['held'].sum())}, "
        f"fewest of a class {fewest[0]} / {fewest[1]}, vendors {vendors[0]} / {vendors[1]}",
        flush=True,
    )


def main() -> None:
    """Render what is not in the cache yet."""
    place = parser(__doc__ or "").parse_args().cache
    material = Material(place)
    for task in eight():
        path = place.sources(task.name)
        if not path.exists():
            with timed(f"render {task.name}"):
                bag = render(task, material)
                save_bag(path, bag)
            report(bag)
    if not base_images(place).exists():
        with timed("render base"):
            render_base(place, recipe(), material)


if __name__ == "__main__":
    main()
