"""Encoder–decoder text models of the T5 family (T5, T5 1.1, Flan-T5).

A sample is a text, a class is an answer, see `base_text_writer`. Padding never counts: gates pool, and second
moments add, real tokens only, those of the encoder where a layer reads its states.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mingle.backbones._passes import during_passes
from mingle.backbones._texts import tokens
from mingle.backbones.base_backbone import Batch, Head, Samples, choose_sites
from mingle.backbones.base_text_writer import MAX_NEW_TOKENS, TextWriter
from mingle.errors import CheckpointError, translated
from mingle.layers import LinearGroup, PooledInput
from mingle.weights import Checkpoint

SHARED = "shared.weight"
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
SITES = {
    "full": ("q", "k", "v", "o", "wi", "wi_0", "wi_1"),
    "light": ("q", "k", "v", "wi", "wi_0", "wi_1"),
}
"""``full``: SelfAttention, EncDecAttention and DenseReluDense.wi* (not wo), as the paper has it."""


class Seq2seq(TextWriter):
    """T5ForConditionalGeneration; the tokenizer (``tokenizer.json``) lies beside the base."""

    family = "T5"
    model_types = ("t5",)
    decisive = (
        "num_heads",
        "d_kv",
        "feed_forward_proj",
        "layer_norm_epsilon",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "scale_decoder_outputs",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
    )

    def canonical_name(self, stored_name: str) -> str | None:
        """Skips the second names of the shared embedding; a stored ``lm_head`` is a tensor of its own."""
        return None if stored_name in (*ALIASES, UNUSED) else stored_name

    def tied(self, described: Checkpoint) -> Mapping[str, str]:
        """The embeddings, and the output layer unless it is stored on its own."""
        return dict.fromkeys(_tied_names(described.entries), SHARED)

    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
        """T5Config. Raises CheckpointError for wrong values."""
        from transformers import T5Config

        with translated(CheckpointError, f"{checkpoint.source}: config.json describes no T5"):
            return T5Config.from_dict(dict(checkpoint.config))

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The model that ``config.json`` describes. Raises CheckpointError for another family."""
        from transformers import T5ForConditionalGeneration

        self.check_family(checkpoint)
        config = self.config(checkpoint)
        config.name_or_path = str(checkpoint.folder)
        described = f"{checkpoint.source}: config.json describes no T5"
        with translated(CheckpointError, described), torch.device("meta"):
            model: Any = T5ForConditionalGeneration(config)
        # A gate pools all tokens so far; a cache would show it the newest one only.
        model.config.use_cache = model.generation_config.use_cache = False
        whole: nn.Module = model
        return whole

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the model, ties its embeddings again, and lets padding be known to gates in every pass."""
        shared = state.get(SHARED)
        tied = _tied_names(state)
        aliases = {} if shared is None else dict.fromkeys(tied, shared)
        filled = super().load(model, {**state, **aliases}, source)
        for name in tied:
            module = filled.get_submodule(name.removesuffix(".weight"))
            module.register_parameter("weight", filled.get_parameter(SHARED))
        for stack in (filled.get_submodule("encoder"), filled.get_submodule("decoder")):
            during_passes(stack, _tell_padding)
        return filled

    def groups(self, model: nn.Module, sites: str) -> list[LinearGroup]:
        """q, k, v of a self-attention, all k, v that read the encoder's states, wi_0 and wi_1 go together."""
        chosen = choose_sites(sites, SITES)
        groups: dict[str, list[str]] = {}
        for name, module in model.named_modules():
            block, _, kind = name.rpartition(".")
            if not isinstance(module, nn.Linear) or kind not in chosen:
                continue
            if _reads_encoder(name):
                read = "encoder states"
            else:
                read = f"{block}.{'input' if kind in ('q', 'k', 'v') else kind.partition('_')[0]}"
            groups.setdefault(read, []).append(name)
        return [LinearGroup(tuple(names)) for names in groups.values()]

    def width(self, model: nn.Module) -> int:
        """Hidden width."""
        return int(model.get_parameter(SHARED).shape[1])

    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `write` writes, without the start token: (N, L)."""
        return write(model, batch)[:, 1:]

    def logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Token logits (N, L, V) of a lesson's batch, which holds what the teacher wrote."""
        del head
        found: Tensor = model(**batch, use_cache=False).logits
        return found

    def dictation(self, model: nn.Module, batch: Batch, written: Tensor, mask: Tensor) -> Batch:
        """The decoder reads the start token and all but the last; position j is asked for token j + 1."""
        config: Any = model.config
        start = torch.full_like(written[:, :1], int(config.decoder_start_token_id))
        tokens = torch.cat([start, written[:, :-1]], dim=1)
        return {**batch, "decoder_input_ids": tokens, "decoder_attention_mask": mask}

    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Texts to ``input_ids`` and ``attention_mask`` (N, S), padded to the longest. Raises SeedsError."""
        return tokens(samples, base)


@torch.no_grad()
def write(model: nn.Module, batch: Batch) -> Tensor:
    """Greedy decoding: (N, 1 + L) tokens from the start token on, the padding token after the end.

    No cache: at every token the decoder, gates included, reads all tokens so far.
    """
    config: Any = model.config
    states = model.get_submodule("encoder")(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    )
    tokens = batch["input_ids"].new_full((len(batch["input_ids"]), 1), int(config.decoder_start_token_id))
    mask = torch.ones_like(tokens)
    for _ in range(MAX_NEW_TOKENS):
        logits = model(
            encoder_outputs=states,
            attention_mask=batch["attention_mask"],
            decoder_input_ids=tokens,
            decoder_attention_mask=mask,
            use_cache=False,
        ).logits
        going = mask[:, -1:] * (tokens[:, -1:] != config.eos_token_id)
        chosen = logits[:, -1:].argmax(-1).masked_fill(going == 0, int(config.pad_token_id))
        tokens, mask = torch.cat([tokens, chosen], dim=1), torch.cat([mask, going], dim=1)
        if not (going * (chosen != config.eos_token_id)).any():
            break
    return tokens


def _tied_names(stored: Collection[str]) -> tuple[str, ...]:
    """The shared embedding's second names; an output layer that is stored is a tensor of its own."""
    return ALIASES if "lm_head.weight" in stored else (*ALIASES, "lm_head.weight")


def _reads_encoder(name: str) -> bool:
    """Whether a Linear reads the states of the encoder: k and v of the cross attention."""
    return name.endswith(("EncDecAttention.k", "EncDecAttention.v"))


def _tell_padding(name: str, pool: PooledInput, kwargs: Mapping[str, Any]) -> None:
    pool.mask = kwargs.get("encoder_attention_mask" if _reads_encoder(name) else "attention_mask")


PLUGIN = Seq2seq
