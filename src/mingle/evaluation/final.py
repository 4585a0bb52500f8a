"""The last merged model under other protocols – no task id, other gates, seeds left out – and its cost.

Shapes: N test samples of a task; logits (N, C) of a task's own head, (N, ΣC) over the union of all labels.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mingle.backbones import Backbone, Head
from mingle.evaluation.matrix import BATCH, ScoredTask
from mingle.layers import ClosedFormGate, GateReduction, TokenRouter, mixtures
from mingle.methods import Method, State

Metrics = dict[str, float | None]


@torch.no_grad()
def final_metrics(
    method: Method[Any],
    state: State,
    tests: Mapping[str, ScoredTask],
    used: Collection[str],
    *,
    model: nn.Module | None = None,
) -> tuple[Metrics, dict[str, Any]]:
    """Metrics of the last model beyond the matrix, and its cost.

    ``agnostic_acc``: mean accuracy over tasks when no task id is given and the label space is the union of
    all tasks' class names (equal names are one label). ``unseen_acc``: ACC without the samples that were
    used as seeds (``used``: their hashes). ``sample_acc``, ``batch_acc``: ACC of the same weights with the
    gates of each sample, and with gates averaged over batches of one task; None without gates. All None for
    a method that has to be told the task. ``model``: the state's model, where it is built already.
    """
    if method.needs_task:
        return dict.fromkeys(("agnostic_acc", "unseen_acc", "sample_acc", "batch_acc")), {}
    backbone, model = state.base.backbone, model or method.model(state)
    heads = {step.task: step.head for step in state.steps if step.head is not None}
    tests = {task: test for task, test in tests.items() if task in heads}
    started = time.perf_counter()
    features = _features(backbone, model, tests)
    seconds = time.perf_counter() - started
    own = {task: _hits(backbone, features[task], heads[task], test) for task, test in tests.items()}
    metrics: Metrics = {
        "agnostic_acc": _mean([_agnostic(backbone, features[t], heads, tests[t]) for t in tests]),
        "unseen_acc": _mean([own[task][_unseen(test, used)] for task, test in tests.items()]),
        **_by_reduction(backbone, model, heads, tests, own),
    }
    count = sum(len(test.labels) for test in tests.values())
    cost = {
        **parameters(model),
        "images_per_second": count / seconds,
        "base_images_per_second": count / _base_seconds(state, tests),
    }
    return metrics, cost


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of the model with its experts, and those of gates or routers per task."""
    layers = dict(mixtures(model))
    unused = {f"{name}.delta_bias" for name, layer in layers.items() if not layer.delta_bias.any()}
    named = {n: t for n, t in model.state_dict().items() if t.is_floating_point() and n not in unused}
    # A gate that several Linears share, like a tied weight, has a name in each.
    tensors = {(t.data_ptr(), t.shape): t for t in named.values()}
    tasks = max((layer.tasks for layer in layers.values()), default=1)
    # The gate of several layers may be one module.
    deciding = {layer.gate for layer in layers.values()} | {
        module for module in model.modules() if isinstance(module, TokenRouter | ClosedFormGate)
    }
    gates = sum(t.numel() for module in deciding for t in module.state_dict().values()) // max(tasks, 1)
    return {"parameters": sum(t.numel() for t in tensors.values()), "gate_parameters": gates}


@contextmanager
def gate_reduction(model: nn.Module, reduction: GateReduction) -> Iterator[None]:
    """All gates of a model with another reduction, for a while."""
    gates = [layer.gate for _, layer in mixtures(model)]
    before = [gate.reduction for gate in gates]
    for gate in gates:
        gate.reduction = reduction
    try:
        yield
    finally:
        for gate, kept in zip(gates, before, strict=True):
            gate.reduction = kept


def _by_reduction(
    backbone: Backbone,
    model: nn.Module,
    heads: Mapping[str, Head],
    tests: Mapping[str, ScoredTask],
    own: Mapping[str, Tensor],
) -> Metrics:
    """ACC under both gate reductions; ``own`` are the hits under the model's own one."""
    used = {layer.gate.reduction for _, layer in mixtures(model)}
    found: Metrics = {}
    reductions: tuple[GateReduction, ...] = ("sample", "batch")
    for reduction in reductions:
        hits: Mapping[str, Tensor] = own
        if used and used != {reduction}:
            with gate_reduction(model, reduction):
                features = _features(backbone, model, tests)
            hits = {task: _hits(backbone, features[task], heads[task], test) for task, test in tests.items()}
        found[f"{reduction}_acc"] = _mean(list(hits.values())) if used else None
    return found


def _features(
    backbone: Backbone, model: nn.Module, tests: Mapping[str, ScoredTask]
) -> dict[str, list[Tensor]]:
    """Features of every task, batch by batch."""
    return {
        task: [backbone.features(model, part) for part in test.batches(BATCH)] for task, test in tests.items()
    }


def _base_seconds(state: State, tests: Mapping[str, ScoredTask]) -> float:
    base, started = state.base.model(), time.perf_counter()
    _features(state.base.backbone, base, tests)
    return time.perf_counter() - started


def _hits(backbone: Backbone, features: Sequence[Tensor], head: Head, test: ScoredTask) -> Tensor:
    said = torch.cat([backbone.decide(part, head) for part in features])
    return (said == test.labels).float()


def _agnostic(
    backbone: Backbone, features: Sequence[Tensor], heads: Mapping[str, Head], test: ScoredTask
) -> Tensor:
    names = [name for head in heads.values() for name in head.classes]
    said: list[str | None] = []
    for part in features:
        best = torch.cat([backbone.classify(part, head) for head in heads.values()], dim=-1).argmax(-1)
        # An answer in words may be no class of any task.
        named = torch.stack([backbone.decide(part, head) >= 0 for head in heads.values()]).any(0)
        said += [names[i] if known else None for i, known in zip(best.tolist(), named.tolist(), strict=True)]
    true = [heads[test.task].classes[i] for i in test.labels.tolist()]
    return torch.tensor([float(one == other) for one, other in zip(said, true, strict=True)])


def _unseen(test: ScoredTask, used: Collection[str]) -> Tensor:
    return torch.tensor([sample not in used for sample in test.ids])


def _mean(hits: list[Tensor]) -> float | None:
    if not all(len(found) for found in hits):
        return None
    return float(torch.stack([found.mean() for found in hits]).mean())
