"""Local copies of a CLIP suite's models and data: same layout, tiny content."""

import json
import shutil

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ..backbones.whole_clip import write_clip
from ..conftest import perturbed

CLASSES = {
    "eurosat": ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    "resisc45": ("airplane", "baseball_diamond", "sea_ice", "wetland"),
    "sun397": ("abbey", "bow_window", "zoo"),
}


def write_models(root, tasks, tower="base-patch32"):
    """The whole base, and bare vision towers without projection and head, as the published ones are."""
    base = root / "models" / f"openai__clip-vit-{tower}"
    write_clip(base)
    tensors = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())["vision_config"] | {
        "model_type": "clip_vision_model"
    }
    vision = {name: t for name, t in tensors.items() if name.startswith("vision_model.")}
    for seed, task in enumerate(tasks, start=1):
        folder = root / "models" / f"tanganke__clip-vit-{tower}_{task}"
        folder.mkdir()
        save_file(perturbed(vision, seed), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))


def write_pictures(root, task, *, each=3, splits=("test", "train")):
    """Random pictures of different sizes in one folder per class."""
    generator = torch.Generator().manual_seed(len(task))
    for split in splits:
        for name in CLASSES[task]:
            folder = root / task / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                size = (20 + number, 18, 3)
                pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def write_root(root, tasks=tuple(CLASSES)):
    write_models(root, tasks)
    for task in tasks:
        write_pictures(root, task)
    return root


def into_hub_cache(cache, kind, hub_id, folder):
    """Moves a folder into a cache as the Hub's client lays it out."""
    repository = cache / f"{kind}s--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    shutil.move(folder, repository / "snapshots" / "abc123")
    return repository / "snapshots" / "abc123"
