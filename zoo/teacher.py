"""Features of a pretrained ViT-S/14 (DINOv2) of the base's images, computed once, in resumable parts."""

from __future__ import annotations

import time

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

from common import base_images, parser, timed
from mingle.suites._build.draws import SEED, generator
from mingle.suites._dino.recipe import BLOCKS
from mingle.suites._dino.weights import from_graph
from mingle.suites._glyph.augment import MEAN, STD, compose
from mingle.suites._glyph.build_folder import BuildFolder, load_bag, save_bag
from names import MIN_COUNT

PART = 2048
SIDE = 56


def load_teacher(place: BuildFolder) -> Dinov2Model:
    """The first blocks of the pretrained model."""
    path = next((place.work / "pip").rglob("*.onnx"))
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    model = Dinov2Model(config)
    state = from_graph(onnx.load(str(path)).graph)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # not in the export: only training uses it
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise SystemExit(
            f"the exported model does not match: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    model.encoder.layer = model.encoder.layer[:BLOCKS]
    return model.eval()


@torch.inference_mode()
def features(model: Dinov2Model, pictures: Tensor) -> Tensor:
    """Class token and mean patch token, each of norm 1."""
    big = functional.interpolate(
        pictures, size=SIDE, mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(pixel_values=(big - MEAN) / STD).last_hidden_state
    hidden = hidden.float()
    return torch.cat(
        [functional.normalize(hidden[:, 0], dim=1), functional.normalize(hidden[:, 1:].mean(1), dim=1)], dim=1
    )


def main() -> None:
    """Compute the parts that are missing, then join them."""
    args = parser(__doc__ or "")
    args.add_argument("--images", type=int, default=80000, help="how many images get a teacher feature")
    options = args.parse_args()
    folder = options.cache.work / "teacher"
    target = folder / "features.npz"
    if target.exists():
        return
    torch.set_num_threads(2)
    bag = load_bag(base_images(options.cache))
    usable = np.flatnonzero(np.bincount(bag["labels"])[bag["labels"]] >= MIN_COUNT)
    chosen = np.random.default_rng([SEED, 5]).permutation(usable)[: options.images]
    model, joined = load_teacher(options.cache), []
    with timed("teacher"):
        for part in range(0, len(chosen), PART):
            path = folder / f"part-{part:06d}.npz"
            if not path.exists():
                start, index = time.perf_counter(), chosen[part : part + PART]
                rgba, mono = torch.from_numpy(bag["rgba"][index]), torch.from_numpy(bag["mono"][index])
                pictures = compose(rgba, mono, "colour", 0.3, generator(6, part))
                rows = torch.cat([features(model, chunk) for chunk in pictures.split(64)])
                save_bag(path, {"features": rows.numpy().astype(np.float16)})
                rate = len(index) / (time.perf_counter() - start)
                print(f"{part + len(index)} of {len(chosen)}: {rate:.0f} images/s", flush=True)
            joined.append(load_bag(path)["features"])
    save_bag(target, {"index": chosen, "features": np.concatenate(joined)})


if __name__ == "__main__":
    main()
