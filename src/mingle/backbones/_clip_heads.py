"""Class heads out of class names: the text tower of a whole CLIP (Radford et al. 2021, arXiv 2103.00020).

Shapes: C classes; K templates; d the dimension of the joint space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mingle.backbones._names import distinct
from mingle.backbones.base_backbone import FORWARD_BATCH, Head
from mingle.errors import CheckpointError, ConfigError, translated
from mingle.weights import Checkpoint, Entry

TEMPLATES = ("a photo of a {}.",)


@torch.no_grad()
def zero_shot_head(
    base: Checkpoint,
    text_tower: Mapping[str, Entry],
    classes: Sequence[str],
    templates: Sequence[str] | None = None,
) -> Head:
    """``e_c = normalise(1/K Σ_k t_kc / ‖t_kc‖)``, t_kc the text embedding; scale ``exp(logit_scale)``.

    ``text_tower``: where the base stores the tensors of a CLIPTextModelWithProjection, and ``logit_scale``.
    ``{}`` in a template stands for the class name. Raises ConfigError for repeated class names or a template
    without ``{}``, CheckpointError for a base without text tower or tokenizer.
    """
    names = distinct(list(classes), "class names")
    forms = distinct(list(templates or TEMPLATES), "templates")
    odd = [form for form in forms if "{}" not in form]
    if odd:
        raise ConfigError(
            f"templates: expected {{}} where the class name goes, found {', '.join(map(repr, odd))}"
        )
    tower, scale = _text_tower(base, text_tower)
    words = _tokenizer(base)
    texts = [form.replace("{}", name) for name in names for form in forms]
    longest = int(base.config["text_config"].get("max_position_embeddings", 77))
    parts: list[Tensor] = []
    for start in range(0, len(texts), FORWARD_BATCH):
        part = texts[start : start + FORWARD_BATCH]
        tokens = words(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        found = tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        parts.append(normalize(found.text_embeds, dim=-1))
    means = torch.cat(parts).reshape(len(names), len(forms), -1).mean(dim=1)
    return Head(names, {"class_embeddings": normalize(means, dim=-1), "logit_scale": scale})


def _text_tower(base: Checkpoint, text_tower: Mapping[str, Entry]) -> tuple[nn.Module, Tensor]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    if base.config.get("model_type") != "clip" or not isinstance(base.config.get("text_config"), dict):
        raise CheckpointError(
            f"{base.source}: class names need the text tower of a whole CLIP (model_type 'clip'), found "
            f"{base.config.get('model_type')!r}; start the run from the whole model, or pass a head"
        )
    state = dict(replace(base, entries=dict(text_tower)).tensors(torch.float32))
    scale = state.pop("logit_scale", None)
    if scale is None:
        raise CheckpointError(f"{base.source}: no tensor 'logit_scale'; is it a whole CLIP?")
    own = {k: base.config[k] for k in ("projection_dim",) if k in base.config}
    with translated(CheckpointError, f"{base.source}: config.json and weights give no text tower"):
        with torch.device("meta"):
            tower: Any = CLIPTextModelWithProjection(
                CLIPTextConfig.from_dict({**base.config["text_config"], **own})
            )
        tower.load_state_dict(state, strict=True, assign=True)
        embeddings = tower.text_model.embeddings
        positions = len(embeddings.position_embedding.weight)
        embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
    frozen: nn.Module = tower.eval().requires_grad_(False)
    return frozen, scale.exp()


def _tokenizer(base: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
    from transformers import CLIPTokenizer

    # Without its files the class would quietly make a tokenizer that knows no word.
    files = ("tokenizer.json",), ("vocab.json", "merges.txt")
    if not any(all((base.folder / name).exists() for name in needed) for needed in files):
        raise CheckpointError(
            f"{base.source}: class names need tokenizer.json, or vocab.json and merges.txt, beside the model"
        )
    with translated(CheckpointError, f"{base.source}: tokenizer not readable"):
        return CLIPTokenizer.from_pretrained(str(base.folder), local_files_only=True)
