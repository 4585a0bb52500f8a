"""A very small CLIP tower whose checkpoints are written as a test wants them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mingle.backbones.clip import Clip
from mingle.methods import METHODS, Arrival, Base, SeedPool

from ..conftest import write_checkpoint

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 24,
}
FROZEN = "vision_model.encoder.layers.0.mlp.fc1.weight"
"""A tensor of zeros in the base: what is added to it is its task vector to the last bit."""


class Small:
    """``write(name, deltas)`` stores a checkpoint; ``merge(method, names)`` merges some."""

    def __init__(self, root):
        self.root, self.backbone, self.known = root, Clip(), {}
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES)).save_pretrained(root / "base")
        self.tensors = load_file(root / "base" / "model.safetensors")
        self.tensors[FROZEN] = torch.zeros_like(self.tensors[FROZEN])
        save_file(self.tensors, root / "base" / "model.safetensors", metadata={"format": "pt"})
        self.config = json.loads((root / "base" / "config.json").read_text())
        self.base = Base(self.backbone, self.backbone.open(root / "base"))
        generator = torch.Generator().manual_seed(5)
        images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self.batch = self.backbone.prepare(images, self.base.checkpoint)
        self.pool = SeedPool(self.batch, torch.arange(8) % 4)

    def noise(self, seed, scale=0.02):
        """A task vector of full rank."""
        generator = torch.Generator().manual_seed(seed)
        return {n: scale * torch.randn(t.shape, generator=generator) for n, t in sorted(self.tensors.items())}

    def write(self, name, deltas, dtype=torch.float32):
        """A checkpoint at base + deltas."""
        tensors = {n: (t + deltas[n]).to(dtype) for n, t in self.tensors.items()}
        write_checkpoint(self.root / name, tensors, self.config, seed=1)
        return name

    def method(self, name, preset="default", **changes):
        quick = {"steps": 2, "rank": 4} | changes
        known = METHODS.get(name).options_type.model_fields
        return METHODS.get(name).with_preset(preset, {k: v for k, v in quick.items() if k in known})

    def opened(self, name):
        if name not in self.known:
            checkpoint = self.backbone.open(self.root / name)
            self.known[name] = checkpoint, self.backbone.head(checkpoint)
        return self.known[name]

    def merge(self, method, names):
        state = method.init(self.base)
        for number, name in enumerate(names):
            checkpoint, head = self.opened(name)
            arrival = Arrival(f"{number}{name}", checkpoint, head, self.pool, seed=number)
            state = method.update(state, arrival)
        return state

    @torch.no_grad()
    def outputs(self, method, state):
        task = state.tasks[-1] if method.needs_task else None
        return self.backbone.features(method.model(state, task), self.batch)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return Small(tmp_path_factory.mktemp("small"))
