"""Models that answer in words: what families of them have in common.

A class is an answer: a prediction is what the model writes, greedily and at most ``MAX_NEW_TOKENS`` tokens,
and it counts where it is exactly the text of a class. The student is distilled token by token on what the
teacher wrote.

Shapes: N texts of S tokens; L tokens of the answer; V words of the vocabulary.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mingle.backbones._names import distinct, read_names
from mingle.backbones._texts import TextReader, text_bytes, tokenizer
from mingle.backbones.base_backbone import FORWARD_BATCH, Batch, Head, Lesson, split
from mingle.errors import CheckpointError, ConfigError
from mingle.weights import Checkpoint

MAX_NEW_TOKENS = 32


class TextWriter(TextReader):
    """The tokenizer (``tokenizer.json``) lies beside the base, whose folder is a model's ``name_or_path``.

    A subclass says how its models write, and what a student reads who is to write the same.
    """

    writes = True

    left: ClassVar[bool] = False
    """Whether texts are padded on the left, to be continued on the right."""

    @abstractmethod
    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """Greedy decoding: (N, L) tokens up to the end of text, padding after it."""

    @abstractmethod
    def dictation(self, model: nn.Module, batch: Batch, written: Tensor, mask: Tensor) -> Batch:
        """The batch on which ``logits`` are those of what was written; ``mask`` (N, L) marks real tokens."""

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
        return self._texts(model, self.write(model, batch))

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

    def class_logits(self, model: nn.Module, batch: Batch, head: Head) -> Tensor:
        """Raises ConfigError: an answer in words has no logits of classes."""
        del model, batch, head
        raise ConfigError(
            f"this method trains on class probabilities, and a model of this family ({self.family}) writes "
            "its answers; use a method without them, such as mingle or average"
        )

    @torch.no_grad()
    def teach(self, teacher: nn.Module, batch: Batch, head: Head) -> Lesson:
        """What the teacher writes, its logits for every token (end of text included), and its classes."""
        parts = [self.write(teacher, part) for part in split(batch, FORWARD_BATCH)]
        classes = torch.cat([self.decide(self._texts(teacher, part), head) for part in parts])
        wide = max(part.shape[1] for part in parts)
        written = torch.cat([pad(part, (0, wide - part.shape[1])) for part in parts])
        mask = _until_end(teacher, written)
        taught = self.dictation(teacher, batch, written, mask)
        logits = torch.cat([self.logits(teacher, part, head) for part in split(taught, FORWARD_BATCH)])
        return Lesson(taught, logits, classes, mask)

    def words(self, model: nn.Module) -> Any:  # noqa: ANN401 – a class of transformers
        """The tokenizer of a model. Raises CheckpointError."""
        config: Any = model.config
        return tokenizer(str(config.name_or_path), left=self.left)

    def _texts(self, model: nn.Module, written: Tensor) -> Tensor:
        decoded = self.words(model).batch_decode(written, skip_special_tokens=True)
        return text_bytes([text.strip() for text in decoded])


def is_end(model: nn.Module, tokens: Tensor) -> Tensor:
    """Which tokens end a text, by ``eos_token_id`` of the model's configuration: one, several or none."""
    config: Any = model.config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    known = torch.tensor([end for end in ends if end is not None], dtype=tokens.dtype, device=tokens.device)
    return torch.isin(tokens, known)


def _until_end(model: nn.Module, tokens: Tensor) -> Tensor:
    """Marks the tokens up to the first end of text, that one included: (N, L)."""
    ends = is_end(model, tokens).long()
    return (ends.cumsum(1) - ends == 0).long()
