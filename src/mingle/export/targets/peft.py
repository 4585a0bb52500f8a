"""Each expert as a LoRA adapter of the base, which PEFT loads, for methods with low-rank experts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mingle.export.model_files import FORMAT
from mingle.export.target import Target
from mingle.methods import NoOptions
from mingle.methods.base_experts import Tensors, lone_expert
from mingle.methods.base_method import Progress
from mingle.methods.base_weights import WeightsMethod
from mingle.state import MergeRun
from mingle.state.lock import write_file
from mingle.state.manifest import readable_json
from mingle.state.stored_step import public_name
from mingle.state.tensor_file import encode_tensors

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Peft(Target[NoOptions]):
    """``<task>/`` with ``W0 + B A`` as LoRA: ``lora_alpha = r``, so that PEFT's factor α/r is 1.

    The model of adapter t is the merged model with gate t at 1 and all others at 0. Deltas of biases are the
    bias of ``lora_B`` (``lora_bias``), those of LayerNorms whole copies (``modules_to_save``). Gates stay
    behind: an adapter has none.
    """

    def check(self, run: MergeRun) -> None:
        """Refuses methods without low-rank experts. Raises ExportError."""
        tensors = run.state.steps[0].tensors
        stems = set(tensors)
        if "experts" not in stems or not any(name.endswith(".A") for name in tensors["experts"]):
            advice = "use --to merged" if isinstance(run.method, WeightsMethod) else "use --to hf"
            raise self.refusal(run, "keeps no low-rank experts", advice)
        if "weights" in stems:
            raise self.refusal(
                run, "merges other tensors too, so that its experts do not belong to the base", "use --to hf"
            )

    def write(self, run: MergeRun, folder: Path, progress: Progress) -> dict[str, Any]:
        """One adapter folder per task; says what none of them holds."""
        model = run.backbone.skeleton(run.base.checkpoint)
        name, steps = public_name(str(run.base_source)), run.state.steps
        tensors = [step.tensors for step in steps]
        merged: set[str] = set()
        for done, step in enumerate(steps, start=1):
            (folder / step.task).mkdir()
            experts = _alone(tensors, done - 1)
            merged |= _write_adapter(experts, run, model, name, folder / step.task)
            progress("adapters", done, len(steps))
        left = [tensor for tensor in run.base.checkpoint.names() if tensor not in merged]
        return {
            "adapters": [step.task for step in steps],
            "not_in_the_adapters": ["gates", "heads", *left],
            "notes": [
                "an adapter acts as its expert with gate 1; the gates, which weigh the experts, are in none",
                "the class heads are in none",
                f"{len(left)} tensors of the base are not merged and are in none",
            ],
        }


def _alone(steps: Sequence[Tensors], index: int) -> dict[str, Tensor]:
    """What is added with the gate of one task at 1 and all others at 0. PEFT has no rank 0: one of zeros."""
    experts = dict(steps[index]["experts"])
    for linear in [name.removesuffix(".A") for name in experts if name.endswith(".A")]:
        expert = lone_expert(steps, index, linear)
        A, B = expert.A, expert.B
        if not len(A):
            A, B = A.new_zeros(1, A.shape[1]), B.new_zeros(len(B), 1)
        experts |= {f"{linear}.A": A, f"{linear}.B": B}
    return experts


def _write_adapter(
    experts: Mapping[str, Tensor], run: MergeRun, model: nn.Module, base: str, folder: Path
) -> set[str]:
    """Writes one adapter and returns the names of the base's tensors that it changes."""
    ranks = {name.removesuffix(".A"): len(experts[name]) for name in experts if name.endswith(".A")}
    norms = sorted(
        name.removesuffix(".weight")
        for name in experts
        if name.endswith(".weight") and name.removesuffix(".weight") not in ranks
    )
    biased = any(f"{linear}.bias" in experts for linear in ranks)
    tensors = _lora_tensors(experts, ranks, biased=biased)
    changed = [f"{norm}.{part}" for norm in norms for part in ("weight", "bias")]
    for name in changed:
        tensors[PREFIX + name] = run.base.checkpoint.tensor(name, run.base.dtype) + experts[name]
    config = _config(ranks, norms, base, biased=biased)
    # transformers' Conv1D stores its weight the other way round.
    config["fan_in_fan_out"] = any(type(model.get_submodule(n)).__name__ == "Conv1D" for n in ranks)
    write_file(folder / WEIGHTS, encode_tensors(tensors, WEIGHTS, FORMAT))
    write_file(folder / CONFIG, [readable_json(config, CONFIG)])
    biases = {f"{linear}.bias" for linear in ranks if f"{linear}.bias" in experts}
    return {*changed, *biases, *(f"{linear}.weight" for linear in ranks)}


def _lora_tensors(
    experts: Mapping[str, Tensor], ranks: Mapping[str, int], *, biased: bool
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for linear in ranks:
        A, B = experts[f"{linear}.A"], experts[f"{linear}.B"]
        tensors[f"{PREFIX}{linear}.lora_A.weight"] = A
        tensors[f"{PREFIX}{linear}.lora_B.weight"] = B
        if biased:
            delta = experts[f"{linear}.bias"] if f"{linear}.bias" in experts else torch.zeros(len(B)).to(B)
            tensors[f"{PREFIX}{linear}.lora_B.bias"] = delta
    return tensors


def _config(ranks: Mapping[str, int], norms: list[str], base: str, *, biased: bool) -> dict[str, Any]:
    """``adapter_config.json``: the commonest rank, and a pattern for every other one."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {linear: r for linear, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "modules_to_save": norms or None,
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


PLUGIN = Peft
