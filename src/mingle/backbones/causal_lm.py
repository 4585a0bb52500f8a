"""Text models that continue a prompt: Llama, Qwen2, Qwen3, GPT-2 through AutoModelForCausalLM.

A sample is a prompt, a class is an answer, see `base_text_writer`. Prompts are padded on the left. Gates pool
the real tokens of the prompt, see `_prompts`; second moments add the same ones, for they are to protect what
gates read, and a written token is read by none.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mingle.backbones._prompts import read_prompts
from mingle.backbones._texts import tokens
from mingle.backbones.base_backbone import Batch, Head, Samples
from mingle.backbones.base_text_writer import MAX_NEW_TOKENS, TextWriter, is_end
from mingle.backbones.base_transformers import TransformersBackbone
from mingle.errors import SeedsError
from mingle.weights import Canonical, Checkpoint

COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""What files of older versions store although it is computed."""


class CausalLm(TextWriter, TransformersBackbone):
    """The whole class is merged, the output matrix too; where it is the embedding, it is one tensor."""

    family = "causal language model"
    model_types = ("llama", "qwen2", "qwen3", "gpt2")
    auto_class = "AutoModelForCausalLM"
    norms = {"gpt2": {"attention_in": "ln_1", "mlp_in": "ln_2"}}  # noqa: RUF012
    left = True
    decisive = (
        "model_type",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "activation_function",
        "rms_norm_eps",
        "layer_norm_epsilon",
        "rope_parameters",
        "layer_types",
        "sliding_window",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings",
        "eos_token_id",
    )

    def naming(self, described: Checkpoint) -> Canonical:
        """Names of the class; None for what is computed. Raises CheckpointError."""
        names = super().naming(described)
        return lambda stored_name: None if stored_name.endswith(COMPUTED) else names(stored_name)

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The class, whose gates read the prompt. Raises CheckpointError for another family."""
        model: Any = super().skeleton(checkpoint)
        model.config.name_or_path = str(checkpoint.folder)
        read_prompts(model)
        whole: nn.Module = model
        return whole

    @torch.no_grad()
    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """Greedy decoding with a cache: (N, L) tokens up to the end of text, padding after it."""
        padding = int(self.words(model).pad_token_id)
        read, mask, cache = batch["input_ids"], batch["attention_mask"], None
        written: list[Tensor] = []
        going = torch.ones_like(mask[:, :1])
        while len(written) < MAX_NEW_TOKENS and going.any():
            found: Any = model(
                input_ids=read,
                attention_mask=mask,
                position_ids=_positions(mask)[:, -read.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = found.past_key_values
            read = found.logits[:, -1:].argmax(-1).masked_fill(going == 0, padding)
            written.append(read)
            mask = torch.cat([mask, going], dim=1)
            going = going * ~is_end(model, read)
        return torch.cat(written, dim=1)

    def dictation(self, model: nn.Module, batch: Batch, written: Tensor, mask: Tensor) -> Batch:
        """The prompt and all but the last written token: the position of each is asked for the next one."""
        del model
        return {
            "input_ids": torch.cat([batch["input_ids"], written[:, :-1]], dim=1),
            "attention_mask": torch.cat([batch["attention_mask"], mask[:, :-1]], dim=1),
            "prompt_mask": batch["attention_mask"],
        }

    def logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Token logits (N, L, V) of a lesson's batch from the prompt's last token on."""
        del head
        mask = batch["attention_mask"]
        asked = 1 + mask.shape[1] - batch["prompt_mask"].shape[1]
        found: Any = model(**batch, position_ids=_positions(mask), use_cache=False, logits_to_keep=asked)
        logits: Tensor = found.logits
        return logits

    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Prompts to ``input_ids`` and ``attention_mask`` (N, S), padded on the left. Raises SeedsError.

        A prompt that leaves no room for the answer loses its beginning.
        """
        room = int(self.config(base).max_position_embeddings) - MAX_NEW_TOKENS
        batch = tokens(samples, base, longest=room, left=self.left)
        empty = (batch["attention_mask"].sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise SeedsError(f"texts: expected at least one token in each, found none in text {empty[0]}")
        return batch


def _positions(mask: Tensor) -> Tensor:
    """Padding on the left takes no position: (N, S)."""
    return (mask.cumsum(1) - 1).clamp_min(0)


PLUGIN = CausalLm
