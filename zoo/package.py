"""Write the suite folder: test and seed images, models, what they score, model card and licences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil

from card import model_card, write_licences
from common import SUITE, base_model, eight, parser, timed
from mingle.suites._glyph.build_folder import load_bag
from mingle.suites._glyph.package import score
from mingle.suites._glyph.pictures import write_data
from mingle.suites._glyph.recipe import IMAGE_SIZE
from mingle.suites._glyph.tower import load_tower


def write_preprocessor(folder: Path) -> None:
    """CLIP's preprocessing for 32 x 32 images."""
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_resize=True,
        resample=3,
        do_center_crop=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        do_convert_rgb=True,
    ).save_pretrained(folder)


def main() -> None:
    """Package what was trained."""
    args = parser(__doc__ or "")
    args.add_argument("--suite", type=Path, default=SUITE, help="the folder to write")
    options = args.parse_args()
    place, suite, tasks = options.cache, options.suite, [task.name for task in eight()]
    torch.set_num_threads(1)
    shutil.copytree(base_model(place), suite / "base", dirs_exist_ok=True)
    write_preprocessor(suite / "base")
    alone, individual = {}, {}
    with timed("write images and measure"):
        base = load_tower(suite / "base")
        for task in eight():
            data = suite / "data" / f"{task.name}.safetensors"
            shutil.copytree(place.model(task.name), suite / task.name, dirs_exist_ok=True)
            write_data(load_bag(place.sources(task.name)), task, data)
            alone[task.name], individual[task.name] = score(base, suite / task.name, data)
            print(f"{task.name:15s} base {alone[task.name]:.3f}  individual {individual[task.name]:.3f}")
    content = {
        "name": "glyph8",
        "schema": 1,
        "backbone": "clip",
        "tasks": tasks,
        "base": "base",
        "base_accuracy": alone,
        "individual_accuracy": individual,
        "license": "other",
        "licenses": dict.fromkeys(("mnist", "fashion_mnist"), "as the base; sources: MIT"),
    }
    (suite / "suite.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    means = [sum(values.values()) / len(values) for values in (alone, individual)]
    size = sum(path.stat().st_size for path in suite.rglob("*") if path.is_file()) / 2**20
    print(f"mean: base {means[0]:.3f}, individual {means[1]:.3f}; {size:.1f} MiB", flush=True)
    write_licences(place, suite)
    model_card(place, suite, content)
    for path in suite.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
