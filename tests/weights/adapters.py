"""Adapters as the peft library makes and applies them, with random weights in place of trained ones."""

import json
import warnings
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model

ADAPTER_FILE = "adapter_model.safetensors"


@contextmanager
def library():
    """Leaves out the warnings of peft and transformers to each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapted(model, **settings):
    """A PEFT model whose adapter, and whatever else it trains, is random."""
    with library():
        wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **settings})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if parameter.requires_grad:
                # Magnitudes stay around the norms that they start from.
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.2 * noise * (parameter if "magnitude" in name else 1))
    return wrapped


def saved(model, folder, **settings):
    """Folder of the adapter, and the PEFT model."""
    wrapped = adapted(model, **settings)
    with library():
        wrapped.save_pretrained(folder)
    return folder, wrapped


def edit(folder, **changes):
    """Changes adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder
