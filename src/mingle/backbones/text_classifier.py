"""Text classifiers of the BERT kind: BERT (MiniLM is one), (XLM-)RoBERTa, DeBERTa v2 and v3, DistilBERT.

The merged model is the class of AutoModelForSequenceClassification without what is the task's: its last
Linear, and the hidden one before it (BERT's and DeBERTa's pooler, RoBERTa's ``classifier.dense``,
DistilBERT's ``pre_classifier``). A head reads the first token. Padding never counts: gates pool, and second
moments add, real tokens only. The tokenizer (``tokenizer.json``) lies beside the base.

DeBERTa with ``share_att_key`` runs its query and key projections on the relative embeddings too, which belong
to no sample and so have no gate: these two then stay the base's.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from mingle.backbones._passes import during_passes, tell_padding
from mingle.backbones._texts import TextReader, tokens
from mingle.backbones.base_backbone import Batch, Samples
from mingle.backbones.base_classifier import ClassifierBackbone
from mingle.errors import CheckpointError
from mingle.weights import Checkpoint


class TextClassifier(TextReader, ClassifierBackbone):
    """Features are the last states of the first token: (N, d)."""

    family = "text classifier"
    model_types = ("bert", "roberta", "xlm-roberta", "deberta-v2", "distilbert")
    auto_class = "AutoModelForSequenceClassification"
    heads = ("classifier", "bert.pooler", "pooler", "pre_classifier")
    output = ("classifier", "classifier.out_proj")
    hidden: ClassVar = {
        "bert.pooler.dense": torch.tanh,
        "classifier.dense": torch.tanh,
        "pooler.dense": gelu,
        "pre_classifier": relu,
    }
    decisive = (
        "model_type",
        "num_attention_heads",
        "hidden_act",
        "activation",
        "layer_norm_eps",
        "pad_token_id",
        "is_decoder",
        "relative_attention",
        "share_att_key",
        "pos_att_type",
        "position_buckets",
        "max_relative_positions",
        "norm_rel_ebd",
        "position_biased_input",
    )

    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a configuration class of transformers
        """Raises CheckpointError, also for a head whose hidden layer is not the family's own."""
        found = super().config(checkpoint)
        function = getattr(found, "pooler_hidden_act", "gelu")
        if function != "gelu":
            raise CheckpointError(
                f"{checkpoint.source}: config.json: expected pooler_hidden_act 'gelu', found {function!r}"
            )
        return found

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the model, and lets padding be known to gates in every pass."""
        filled: Any = super().load(model, state, source)
        during_passes(filled.base_model, tell_padding)
        whole: nn.Module = filled
        return whole

    def kind(self, model: nn.Module, name: str) -> str | None:
        """Leaves out projections that also run on relative embeddings."""
        config: Any = model.config
        shared = getattr(config, "relative_attention", False) and getattr(config, "share_att_key", False)
        if shared and name.endswith((".query_proj", ".key_proj")):
            return None
        return super().kind(model, name)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last states of the first token: (N, d)."""
        whole: Any = model
        states: Tensor = whole.base_model(**batch).last_hidden_state
        return states[:, 0]

    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Texts to ``input_ids`` and ``attention_mask`` (N, S), cut where the model ends.

        Raises SeedsError.
        """
        config = self.config(base)
        # RoBERTa counts positions from after the padding token's id.
        first = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        return tokens(samples, base, longest=config.max_position_embeddings - first)


PLUGIN = TextClassifier
