"""DINOv2's weights out of an exported graph, under the names of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingle.errors import ConfigError
from mingle.suites._dino.recipe import BLOCKS, MEAN, SIDE, STD
from mingle.weights.source import write_json

RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
VIT_S = {
    "hidden_size": 384,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}


def from_graph(graph: Any) -> dict[str, Tensor]:  # noqa: ANN401 – a GraphProto of onnx
    """The constants of an exported Dinov2Model that is called ``backbone``.

    Those of a MatMul have lost their name: they are transposed weights of the Linear whose bias is added to
    the product. Position embeddings are two constants: class token 1×1×d, patches 1×N×d.
    """
    from onnx import numpy_helper

    constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    named = {
        name.removeprefix("backbone."): t for name, t in constants.items() if name.startswith("backbone.")
    }
    product = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add" and node.input[0].startswith("backbone.") and node.input[1] in product:
            weight = node.input[0].removeprefix("backbone.").removesuffix("bias") + "weight"
            named[weight] = constants[product[node.input[1]]].T.contiguous()
    for old, new in RENAMED.items():
        named = {name.replace(old, new): tensor for name, tensor in named.items()}
    unnamed = [t for name, t in constants.items() if not name.startswith("backbone.") and t.ndim == 3]
    parts = sorted(unnamed, key=lambda tensor: tensor.shape[1])
    if len(parts) != 2 or parts[0].shape[1] != 1:
        raise ConfigError(f"exported model: expected two constants of positions, found {len(parts)}")
    named["embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    return named


def write_model(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """A Dinov2Model of as many blocks as ``config`` says, and its preprocessor. Raises ConfigError."""
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**config))
    own = model.state_dict()
    further = tuple(f"encoder.layer.{n}." for n in range(config["num_hidden_layers"], 1000))
    given = {name: tensor for name, tensor in state.items() if not name.startswith(further)}
    given["embeddings.mask_token"] = torch.zeros_like(own["embeddings.mask_token"])  # for pretraining alone
    wrong = sorted(name for name in own | given if name not in own or own[name].shape != _shape(given, name))
    if wrong:
        raise ConfigError(
            f"exported model: {len(wrong)} tensors do not fit a DINOv2; the first is {wrong[0]!r}"
        )
    model.load_state_dict(given)
    model.save_pretrained(folder)
    write_preprocessor(folder)


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def write_preprocessor(folder: Path) -> None:
    """Pictures of SIDE pixels, with the mean and deviation that DINOv2 was trained with."""
    content = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    write_json(folder / "preprocessor_config.json", content)
