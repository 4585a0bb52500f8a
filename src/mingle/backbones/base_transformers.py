"""Families that an Auto class of transformers with a task head opens: what they have in common.

The merged model is that class without its head, under the names of the class with one. Stored names are
mapped by the library's own rules, so that files of older versions, and of the bare model, read the same.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mingle.backbones._limits import check_buffers
from mingle.backbones.base_backbone import Backbone, choose_sites
from mingle.errors import CheckpointError, ConfigError, translated
from mingle.layers import LinearGroup, is_linear, is_transposed
from mingle.weights import Canonical, Checkpoint

KINDS = {
    "attention_in": (
        ".c_attn",
        *(f".{n}{end}" for n in ("q", "k", "v", "query", "key", "value") for end in ("", "_proj", "_lin")),
    ),
    "attention_out": (".attention.output.dense", ".o_proj", ".out_proj", ".out_lin", ".attn.c_proj"),
    "mlp_in": (".intermediate.dense", ".fc1", ".lin1", ".gate_proj", ".up_proj", ".c_fc"),
    "mlp_out": (".output.dense", ".fc2", ".lin2", ".down_proj", ".mlp.c_proj"),
}
"""Kinds of Linears by the end of their name; the first kind that fits counts."""

SITES = {
    "full": tuple(KINDS),
    "light": ("attention_in", "mlp_in"),
    "light+out": ("attention_in", "attention_out", "mlp_in"),
    "mlp": ("mlp_in", "mlp_out"),
}


class TransformersBackbone(Backbone):
    """A family opened by an Auto class; a new one names its class variables and reads its head."""

    auto_class: ClassVar[str]
    """The Auto class, with a head for the task."""

    heads: ClassVar[tuple[str, ...]] = ()
    """The modules that are a task's own head: not merged, and an Identity in the merged model."""

    norms: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """For a model_type and a kind: the LayerNorm of the block whose output is what those Linears read."""

    ignored: ClassVar[tuple[str, ...]] = ("pooler.", "embeddings.mask_token")
    """Parts of a pretrained model that the class lacks: a file may hold them, and they are left out."""

    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a configuration class of transformers
        """The configuration class of the model_type. Raises CheckpointError for wrong values."""
        with _described(checkpoint):
            return _configuration(checkpoint.config)

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The class without its head; buffers that no file stores are real. Raises CheckpointError."""
        model: nn.Module = self.whole(checkpoint)
        for prefix in self._head_prefixes(model):
            model.set_submodule(prefix.removesuffix("."), nn.Identity())
        return model

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the model and ties again the parameters that are one. Raises CheckpointError."""
        tied = _tied(model)
        aliases = {alias: state[name] for alias, name in tied.items() if name in state}
        filled = super().load(model, {**state, **aliases}, source)
        for alias, name in tied.items():
            owner, _, attribute = alias.rpartition(".")
            filled.get_submodule(owner).register_parameter(attribute, filled.get_parameter(name))
        return filled

    def open(self, source: str | Path, base: Checkpoint | None = None) -> Checkpoint:
        """A weight that is tied to another counts once, under the first name, whichever name it is stored by.

        Raises CheckpointError, also where it is stored under both with different values.
        """
        found = super().open(source, base)
        model = self.whole(found if found.config or base is None else base)
        tied, rename = _tied(model), library_names(model)

        def alias(stored_name: str) -> str | None:
            name = rename(stored_name)
            return name if isinstance(name, str) and name in tied else None

        copies = found.select(alias) if tied else {}
        for name, entry in copies.items():
            first = tied[name]
            both = replace(found, entries={**copies, first: found.entries.get(first, entry)})
            if not torch.equal(both.tensor(first), both.tensor(name)):
                raise CheckpointError(
                    f"{found.source}: {name!r} and {first!r} are one tensor in this model, and differ in the "
                    "file; say tie_word_embeddings false in config.json of base and checkpoints alike"
                )
            found = replace(found, entries=found.entries | {first: both.entries[first]})
        return found

    def naming(self, described: Checkpoint) -> Canonical:
        """Names of the class with a head; None for heads, computed buffers and second names of a tensor.

        What else a pretraining model had (other heads) is left out; a tensor of the backbone that the class
        does not have keeps its name, and is refused as unexpected. Raises CheckpointError.
        """
        model = self.whole(described)
        rename = library_names(model)
        heads = self._head_prefixes(model)
        own = {name for name in model.state_dict() if not name.startswith(heads)} - _tied(model).keys()
        prefix = f"{model.base_model_prefix}."
        known = set(model.state_dict()) | {name for name, _ in model.named_buffers()}
        foreign = tuple(prefix + name for name in self.ignored)

        def canonical(stored_name: str) -> str | tuple[str, ...] | None:
            found = rename(stored_name)
            name = found if isinstance(found, str) else found[0]
            if name in own:
                return found
            unexpected = name.startswith(prefix) and name not in known and not name.startswith(foreign)
            return found if unexpected else None

        return canonical

    def tied(self, described: Checkpoint) -> Mapping[str, str]:
        """As the class ties them. Raises CheckpointError."""
        return _tied(self.whole(described))

    def head_tensors(self, checkpoint: Checkpoint, described: Checkpoint) -> dict[str, Tensor]:
        """The stored tensors of the head modules, by name, in float32; empty without a head."""
        model = self.whole(described)
        rename = library_names(model)
        heads = self._head_prefixes(model)

        def canonical(stored_name: str) -> str | None:
            name = rename(stored_name)
            return name if isinstance(name, str) and name.startswith(heads) else None

        found = replace(checkpoint, entries=checkpoint.select(canonical))
        return dict(found.tensors(torch.float32))

    def head_parameters(self, described: Checkpoint) -> dict[str, Tensor]:
        """Parameters of the head modules in the class that a configuration describes, on the meta device."""
        model = self.whole(described)
        heads = self._head_prefixes(model)
        return {name: tensor for name, tensor in model.named_parameters() if name.startswith(heads)}

    def groups(self, model: nn.Module, sites: str) -> list[LinearGroup]:
        """The Linears of one kind in one module read the same tensor. Raises UnknownNameError.

        ``mlp`` is known only where an MLP is a module of its own.
        """
        chosen = choose_sites(sites, SITES)
        groups: dict[tuple[str, str], list[str]] = {}
        for name, module in model.named_modules():
            kind = self.kind(model, name) if is_linear(module) else None
            if kind is not None and kind in chosen:
                groups.setdefault((name.rpartition(".")[0], kind), []).append(name)
        if sites == "mlp" and len({parent for parent, _ in groups}) == len(groups):
            raise ConfigError(
                f"sites 'mlp': the MLPs of {type(model).__name__} are no modules of their own; "
                "methods that route whole MLPs (wemoe, lora_wemoe) cannot merge it"
            )
        return [
            LinearGroup(tuple(names), self._norm(model, *key), is_transposed(model.get_submodule(names[0])))
            for key, names in groups.items()
        ]

    def kind(self, model: nn.Module, name: str) -> str | None:
        """The kind of a Linear, see KINDS; None for one that is not merged."""
        del model
        return next((kind for kind, ends in KINDS.items() if f".{name}".endswith(ends)), None)

    def width(self, model: nn.Module) -> int:
        """Hidden width; of the last stage where stages differ."""
        config: Any = model.config
        return int(config.hidden_size)

    def whole(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a model class of transformers
        """The class with its head, on the meta device. Raises CheckpointError."""
        from accelerate import init_empty_weights

        self.check_family(checkpoint)
        config = self.config(checkpoint)
        with _described(checkpoint):
            check_buffers(checkpoint, _buffer_bytes(self.auto_class, json.dumps(checkpoint.config)))
            with init_empty_weights(include_buffers=False):
                return _of_class(self.auto_class, config)

    def _head_prefixes(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(f"{name}." for name, _ in model.named_modules() if name in self.heads)

    def _norm(self, model: nn.Module, parent: str, kind: str) -> str | None:
        config: Any = model.config
        norm = self.norms.get(config.model_type, {}).get(kind)
        if norm is None:
            return None
        block = parent
        while block and not hasattr(model.get_submodule(block), norm):
            block = block.rpartition(".")[0]
        return f"{block}.{norm}"


def _configuration(values: Mapping[str, Any]) -> Any:  # noqa: ANN401 – a configuration class of transformers
    from transformers import CONFIG_MAPPING

    found: Any = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
    # It would choose another class than the family's (DeiT with a teacher), and some classes iterate
    # over it without asking; chunks of tokens would not fit a padding mask.
    found.architectures = []
    found.chunk_size_feed_forward = 0
    return found


def _of_class(auto_class: str, config: Any) -> Any:  # noqa: ANN401 – classes of transformers
    import transformers
    from transformers.initialization import no_init_weights

    # Random numbers on the meta device are nothing, but drawing them takes most of the time.
    with no_init_weights():
        made = getattr(transformers, auto_class)
        return made.from_config(config, dtype=torch.float32, trust_remote_code=False)


@lru_cache(maxsize=32)
def _buffer_bytes(auto_class: str, described: str) -> int:
    """Size of the buffers that the model of a configuration (JSON) computes; none is made."""
    with torch.device("meta"):
        model = _of_class(auto_class, _configuration(json.loads(described)))
    return sum(buffer.nbytes for buffer in model.buffers())


def library_names(model: Any) -> Callable[[str], str | tuple[str, ...]]:  # noqa: ANN401 – of transformers
    """From a stored name to the name in a model, or several, as from_pretrained maps it.

    What it returns raises CheckpointError for a tensor that the library would have to compute.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_source = {source: rule for rule in converters for source in rule.source_patterns}
    shapes, prefix = model.state_dict(), model.base_model_prefix

    def rename(stored_name: str) -> str | tuple[str, ...]:
        name, source = rename_source_key(stored_name, renamings, converters, prefix, shapes)
        if name not in shapes:
            # A new name may look like an old one of another module.
            plain, _ = rename_source_key(stored_name, [], [], prefix, shapes)
            if plain in shapes:
                return str(plain)
        if source is None:
            return str(name)
        rule = by_source[source]
        operations = rule.operations
        if len(operations) != 1 or not isinstance(operations[0], Chunk) or operations[0].dim != 0:
            raise CheckpointError(
                f"{stored_name!r}: stored in a layout of {type(model).__name__} that mingle does not read"
            )
        return tuple(name.replace(rule.target_patterns[0], target) for target in rule.target_patterns)

    return rename


def _tied(model: Any) -> dict[str, str]:  # noqa: ANN401 – a model class of transformers
    """Second names of parameters, and the first names they go by."""
    return dict(model.all_tied_weights_keys)


def _described(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    kind = checkpoint.config.get("model_type")
    return translated(CheckpointError, f"{checkpoint.source}: config.json describes no {kind}")
