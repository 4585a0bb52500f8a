"""A PEFT LoRA adapter as a checkpoint: the base's tensors, changed one at a time when they are read.

For a weight V (out, in) – the stored W, or Wᵀ where it is stored (in, out), as in embeddings and Conv1D –

    V' = V + s · B A,   s = α / r, or α / √r (rank-stabilised, Kalajdzievski 2023, arXiv 2312.03732)
    V' ← m ⊙ V' / ‖V'‖   with the norm over each output's inputs (DoRA, Liu et al. 2024, arXiv 2402.09353)

with A (r, in), B (out, r), m (out,) (Hu et al. 2021, arXiv 2106.09685). Convolutions: the same on flattened
kernels. Tensors that were trained as they are (biases, ``modules_to_save``) replace the base's.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from mingle.errors import CheckpointError, MismatchError
from mingle.weights.adapter_config import WAY_OUT, LoraSettings
from mingle.weights.checkpoint import DTYPES, Canonical, Checkpoint, Entry

PREFIX = "base_model.model."
ROLES = {
    "lora_A.weight": "down",
    "lora_embedding_A": "down",
    "lora_B.weight": "up",
    "lora_embedding_B": "up",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
}
PART = re.compile(rf"(.+)\.({'|'.join(map(re.escape, ROLES))})(?:\.weight)?")
FOREIGN = re.compile(r"\b(lora_|token_adapter\b|trainable_tokens|prompt_)")
"""In the names of tensors that only other kinds of adapters have."""


@dataclass(frozen=True, kw_only=True)
class ChangedEntry(Entry):
    """A tensor of the base with its low-rank change; computed in float32, in float64 where the base is.

    Without ``down``, ``up`` is the change itself (the bias of B). ``inputs_first``: the origin is a weight
    stored (in, out), and the change is (out, in).
    """

    origin: Entry
    up: Entry
    down: Entry | None = None
    magnitude: Entry | None = None
    scale: float
    inputs_first: bool = False

    @property
    def embedding(self) -> bool:
        """Whether it is the change of an embedding."""
        return self.down is not None and _embeds(self.down)

    @property
    def _parts(self) -> dict[str, Entry]:
        """What it is made of, by role."""
        parts = {"origin": self.origin, "up": self.up, "down": self.down, "magnitude": self.magnitude}
        return {role: part for role, part in parts.items() if part is not None}

    def _stored(self) -> Tensor:
        return self._made_of({role: part.read() for role, part in self._parts.items()})

    def _made_of(self, parts: Mapping[str, Tensor]) -> Tensor:
        dtype = DTYPES[self.dtype]
        change = parts["up"].to(dtype)
        if "down" in parts:
            change = change.flatten(1) @ parts["down"].to(dtype).flatten(1)
        stored = parts["origin"].to(dtype)
        weight = stored.mT if self.inputs_first else stored
        changed = weight + self.scale * change.reshape(weight.shape)
        if "magnitude" in parts:
            rows = changed.flatten(1)
            factor = parts["magnitude"].to(dtype).reshape(-1, 1) / torch.linalg.vector_norm(
                rows, dim=1, keepdim=True
            )
            changed = (factor * rows).reshape(weight.shape)
        return changed.mT.contiguous() if self.inputs_first else changed

    def feed(self, digest: "hashlib._Hash") -> Tensor:
        """Adds what the tensor is made of: its sum would differ in the last bit between machines."""
        digest.update(f"{self.scale!r}\0{self.inputs_first}\0".encode())
        parts = {}
        for role, part in self._parts.items():
            digest.update(f"{role}\0".encode())
            parts[role] = part.feed(digest)
        return self._as_in_model(self._made_of(parts))


@dataclass(frozen=True)
class Adapter(Checkpoint):
    """A LoRA adapter together with its base: every tensor of the base, some of them changed.

    ``stored`` are the adapter's own tensors; names are of the model that the adapter was trained on.
    """

    base: Checkpoint = field(kw_only=True, repr=False)
    settings: LoraSettings = field(kw_only=True, repr=False)

    @cached_property
    def modules(self) -> Mapping[str, Mapping[str, Entry]]:
        """The low-rank parts by module and by role (see ROLES). Raises CheckpointError for a foreign part."""
        found: dict[str, dict[str, Entry]] = {}
        for entry in self.stored:
            parsed = PART.fullmatch(entry.stored_name.removeprefix(PREFIX))
            if parsed is not None:
                found.setdefault(parsed[1], {})[ROLES[parsed[2]]] = entry
            elif FOREIGN.search(entry.stored_name):
                raise CheckpointError(
                    f"{entry.file}: {entry.stored_name!r} is no part of a LoRA adapter as PEFT "
                    f"saves it; {WAY_OUT}"
                )
        return found

    @cached_property
    def whole(self) -> Mapping[str, Entry]:
        """Tensors that were trained as they are, by name in the model."""
        names = {entry.stored_name.removeprefix(PREFIX): entry for entry in self.stored}
        return {
            re.sub(r"\.(base_layer|modules_to_save)(?=\.)", "", name): entry
            for name, entry in names.items()
            if not PART.fullmatch(name)
        }

    @property
    def changes(self) -> tuple[str, ...]:
        """Names of the changed tensors in the model that the adapter was trained on."""
        return tuple(dict.fromkeys((*self.whole, *(f"{module}.weight" for module in self.modules))))

    def select(self, canonical: Canonical) -> dict[str, Entry]:
        """The base's tensors with the adapter's changes. Raises MismatchError, with every problem."""
        found, problems = self.base.select(canonical), []
        for stored_name, entry in self.whole.items():
            for own, part in entry.named(canonical(stored_name)).items():
                if own in self.base.entries and part.shape != found[own].shape:
                    problems.append(f"{own}: shape {_times(part)}, base has {_times(found[own])}")
                found[own] = part
        for module, parts in self.modules.items():
            for suffix, change in (("weight", self._weight), ("bias", self._bias)):
                name = canonical(f"{module}.{suffix}")
                if name is None or (suffix == "bias" and "bias" not in parts):
                    continue
                if not isinstance(name, str) or name not in found:
                    problems.append(f"{module}.{suffix}: the base has no such tensor to change")
                    continue
                made = change(module, parts, found[name])
                if isinstance(made, str):
                    problems.append(f"{name}: {made}")
                else:
                    found[name] = made
        problems.extend(self._unclear(found))
        if problems:
            raise MismatchError(f"{self.source} (adapter, trained on {self.settings.base})", problems)
        return found

    def renamed(self, canonical: Canonical) -> Self:
        """The adapter under other names. Raises CheckpointError where it changes nothing of the model."""
        if all(canonical(name) is None for name in self.changes):
            raise CheckpointError(
                f"{self.source}: changes no tensor of this architecture "
                f"({', '.join(self.changes[:3])}, …; trained on {self.settings.base}); "
                "is it the right backbone?"
            )
        return super().renamed(canonical)

    def check_tied(self, tied: Mapping[str, str]) -> None:
        """Refuses a change of a tensor that the base uses in several places, trained in one of them only.

        ``tied``: second names of parameters and the first names they go by. Raises CheckpointError.
        """
        shared = {*tied, *tied.values()}
        changed = [name for name in self.changes if name in shared]
        if changed:
            raise CheckpointError(
                f"{self.source}: changes {', '.join(changed)}, one tensor in several places of the base "
                f"({', '.join(sorted(shared))}), in one of these places only; train the adapter without it"
            )

    def _unclear(self, found: Mapping[str, Entry]) -> Iterator[str]:
        """Square weights where ``fan_in_fan_out`` contradicts weights whose shape says how they are stored.

        PEFT keeps one value for all modules, that of the last one it looked at.
        """
        flag = self.settings.transposed
        changed = {n: e for n, e in found.items() if isinstance(e, ChangedEntry) and not e.embedding}
        square = [n for n, e in changed.items() if len(e.shape) == 2 and e.shape[0] == e.shape[1]]
        odd = [
            n for n, e in changed.items() if len(e.shape) == 2 and n not in square and e.inputs_first != flag
        ]
        for name in square if odd else ():
            yield (
                f"{name}: square, and fan_in_fan_out {flag} of adapter_config.json is wrong for {odd[0]}: "
                "whether it is stored (in, out) cannot be told"
            )

    def _weight(self, module: str, parts: Mapping[str, Entry], origin: Entry) -> Entry | str:
        """The changed weight, or what is wrong."""
        expected = {"down", "up"} | ({"magnitude"} if self.settings.magnitudes else set())
        expected |= {"bias"} if self.settings.biased else set()
        if set(parts) != expected:
            return f"expected the parts {', '.join(sorted(expected))}, found {', '.join(sorted(parts))}"
        down, up, rank = parts["down"], parts["up"], self.settings.rank_of(module)
        if rank < 1 or down.shape[:1] != (rank,) or up.shape[1:2] != (rank,):
            return (
                f"A {_times(down)} and B {_times(up)} are not of rank {rank}, as adapter_config.json has it"
            )
        made = (*up.shape[:1], *down.shape[1:])
        square = made == made[::-1]
        inputs_first = _embeds(down) or (self.settings.transposed if square else made != origin.shape)
        if made != (origin.shape[::-1] if inputs_first else origin.shape):
            return f"B A is {'×'.join(map(str, made))}, base has {_times(origin)}"
        magnitude = parts.get("magnitude")
        if magnitude is not None and math.prod(magnitude.shape) != up.shape[0]:
            return f"{math.prod(magnitude.shape)} magnitudes for {up.shape[0]} outputs"
        return _changed(
            origin,
            up=up,
            down=down,
            magnitude=magnitude,
            scale=self.settings.scale(module, rank),
            inputs_first=inputs_first,
        )

    def _bias(self, module: str, parts: Mapping[str, Entry], origin: Entry) -> Entry | str:
        if parts["bias"].shape != origin.shape:
            return f"the bias of B is {_times(parts['bias'])}, base has {_times(origin)}"
        scale = self.settings.scale(module, self.settings.rank_of(module))
        return _changed(origin, up=parts["bias"], scale=scale)


def _changed(origin: Entry, **change: Any) -> ChangedEntry:  # noqa: ANN401 – fields of ChangedEntry
    dtype = "F64" if origin.dtype == "F64" else "F32"
    return ChangedEntry(origin.file, origin.stored_name, origin.shape, dtype, origin=origin, **change)


def _embeds(down: Entry) -> bool:
    return "lora_embedding_A" in down.stored_name


def _times(entry: Entry) -> str:
    return "×".join(map(str, entry.shape)) or "scalar"
