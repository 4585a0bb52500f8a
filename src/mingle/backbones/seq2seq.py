"""Encoder–decoder text models of the T5 family (T5, T5 1.1, Flan-T5).

A sample is a text, a class is an answer: a prediction is what the model writes, greedily and at most
``MAX_NEW_TOKENS`` tokens, and it counts where it is exactly the text of a class. The student is distilled
token by token on what the teacher wrote.

Shapes: N texts of S tokens; L tokens of the answer; V words of the vocabulary. Padding never counts: gates
pool, and second moments add, real tokens only, those of the encoder where a layer reads its states.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mingle.backbones._names import distinct, read_names
from mingle.backbones._passes import during_passes
from mingle.backbones._texts import text_bytes, tokenizer, tokens
from mingle.backbones.base_backbone import (
    FORWARD_BATCH,
    Backbone,
    Batch,
    Head,
    Lesson,
    Samples,
    choose_sites,
    split,
)
from mingle.errors import CheckpointError, ConfigError
from mingle.layers import LinearGroup, PooledInput
from mingle.weights import Checkpoint

MAX_NEW_TOKENS = 32
SHARED = "shared.weight"
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
SITES = {
    "full": ("q", "k", "v", "o", "wi", "wi_0", "wi_1"),
    "light": ("q", "k", "v", "wi", "wi_0", "wi_1"),
}
"""``full``: SelfAttention, EncDecAttention and DenseReluDense.wi* (not wo), as the paper has it."""


class Seq2seq(Backbone):
    """T5ForConditionalGeneration; the tokenizer (``tokenizer.json``) lies beside the base."""

    preset = "text"
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

    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
        """T5Config. Raises CheckpointError for wrong values."""
        from transformers import T5Config

        try:
            return T5Config.from_dict(dict(checkpoint.config))
        except Exception as error:  # whatever transformers makes of a wrong value
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{checkpoint.source}: config.json describes no T5 ({reason})") from error

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The model that ``config.json`` describes. Raises CheckpointError for another family."""
        from transformers import T5ForConditionalGeneration

        self.check_family(checkpoint)
        config = self.config(checkpoint)
        config.name_or_path = str(checkpoint.folder)
        with torch.device("meta"):
            model: Any = T5ForConditionalGeneration(config)
        # A gate pools all tokens so far; a cache would show it the newest one only.
        model.config.use_cache = model.generation_config.use_cache = False
        whole: nn.Module = model
        return whole

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the model, ties its embeddings again, and lets padding be known to gates in every pass."""
        shared = state.get(SHARED)
        tied = ALIASES if "lm_head.weight" in state else (*ALIASES, "lm_head.weight")
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

    def head(
        self, checkpoint: Checkpoint, given: Path | Tensor | None = None, *, base: Checkpoint | None = None
    ) -> Head | None:
        """The answers: a file of names, or ``classes.json`` (a list of texts) beside the checkpoint.

        Raises CheckpointError for a tensor, ConfigError for a file that names nothing.
        """
        del base
        if isinstance(given, Tensor):
            raise CheckpointError("head: expected the answers of the task as texts, found a tensor")
        file = given or checkpoint.folder / "classes.json"
        return Head(read_names(file), {}) if given or file.exists() else None

    def zero_shot_head(
        self, base: Checkpoint, classes: Sequence[str], templates: Sequence[str] | None = None
    ) -> Head:
        """The answers themselves: a text model needs no embeddings of its classes."""
        del base, templates
        return Head(distinct(list(classes), "classes"), {})

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The answers that the model writes, as UTF-8 bytes padded with zeros: (N, bytes)."""
        return _texts(model, write(model, batch))

    def classify(self, features: Tensor, head: Head) -> Tensor:
        """1 where an answer is exactly the text of a class, else 0: (N, C)."""
        answers = text_bytes([name.strip() for name in head.classes]).to(features.device)
        wide = max(features.shape[1], answers.shape[1])
        both = [pad(texts, (0, wide - texts.shape[1])) for texts in (features, answers)]
        return (both[0][:, None] == both[1][None]).all(-1).float()

    def probabilities(self, features: Tensor, head: Head) -> Tensor:
        """1 for the class that the answer names; zeros where it names none: (N, C)."""
        return self.classify(features, head)

    def decide(self, features: Tensor, head: Head) -> Tensor:
        """The class that the answer names, −1 for none: (N,)."""
        named = self.classify(features, head)
        return named.argmax(-1).masked_fill(~named.bool().any(-1), -1)

    def logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Token logits (N, L, V) of a lesson's batch, which holds what the teacher wrote."""
        del head
        found: Tensor = model(**batch, use_cache=False).logits
        return found

    def class_logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Raises ConfigError: an answer in words has no logits of classes."""
        del model, batch, head
        raise ConfigError(
            "this method trains on class probabilities, and a sequence-to-sequence model writes its answers; "
            "use a method without them, such as mingle or average"
        )

    @torch.no_grad()
    def teach(self, teacher: nn.Module, batch: Batch, head: Head) -> Lesson:
        """What the teacher writes, its logits for every token of it (end of text included), and its classes.

        The decoder reads the start token and all but the last token; position j is asked for token j + 1.
        """
        lessons: list[tuple[Tensor, Tensor]] = []
        classes: list[Tensor] = []
        for part in split(batch, FORWARD_BATCH):
            written = write(teacher, part)
            lessons.append((written[:, :-1], _until_end(teacher, written[:, 1:])))
            classes.append(self.decide(_texts(teacher, written), head))
        wide = max(tokens.shape[1] for tokens, _ in lessons)
        tokens, mask = (
            torch.cat([pad(part, (0, wide - part.shape[1])) for part in column])
            for column in zip(*lessons, strict=True)
        )
        taught = {**batch, "decoder_input_ids": tokens, "decoder_attention_mask": mask}
        logits = torch.cat([self.logits(teacher, part, head) for part in split(taught, FORWARD_BATCH)])
        return Lesson(taught, logits, torch.cat(classes), mask)

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


def _reads_encoder(name: str) -> bool:
    """Whether a Linear reads the states of the encoder: k and v of the cross attention."""
    return name.endswith(("EncDecAttention.k", "EncDecAttention.v"))


def _tell_padding(name: str, pool: PooledInput, kwargs: Mapping[str, Any]) -> None:
    pool.mask = kwargs.get("encoder_attention_mask" if _reads_encoder(name) else "attention_mask")


def _texts(model: nn.Module, written: Tensor) -> Tensor:
    config: Any = model.config
    words = tokenizer(str(config.name_or_path))
    return text_bytes([text.strip() for text in words.batch_decode(written[:, 1:], skip_special_tokens=True)])


def _until_end(model: nn.Module, tokens: Tensor) -> Tensor:
    """Marks the tokens up to the first end of text, that one included: (N, L)."""
    config: Any = model.config
    ends = torch.eq(tokens, config.eos_token_id).long()
    return (ends.cumsum(1) - ends == 0).long()


PLUGIN = Seq2seq
