"""Where the accuracy of a merged run goes: score every task with some gates switched by hand.

    python benchmarks/gate_ablation.py demo/runs/mingle-reference

For runs whose gates are adapted. They were in the presence of the earlier experts, so "earlier experts off"
is a test of their influence at inference, not of what a gate adapted alone would reach.
"""

import argparse
from collections.abc import Callable

import torch

from mingle.evaluation import accuracy, scored_tasks
from mingle.layers import Gate, Placement, mixtures
from mingle.state import MergeRun
from mingle.suites import open_suite

Switch = Callable[[Gate, int], None]


def keep_all(gate: Gate, own: int) -> None:
    """As adapted."""
    del gate, own


def earlier_off(gate: Gate, own: int) -> None:
    """Experts of earlier tasks never fire."""
    gate.weight[:own] = 0
    gate.bias[:own] = 0


def own_only(gate: Gate, own: int) -> None:
    """Only the task's own expert fires, as its gate was adapted."""
    others = torch.arange(len(gate.bias)) != own
    gate.weight[others] = 0
    gate.bias[others] = 0


def oracle(gate: Gate, own: int) -> None:
    """The task's own gate is 1, every other 0."""
    gate.weight.zero_()
    gate.bias.zero_()
    gate.bias[own] = 1


SWITCHES: dict[str, Switch] = {
    "all gates as adapted": keep_all,
    "earlier experts off": earlier_off,
    "all other experts off": own_only,
    "own gate 1, others 0 (oracle)": oracle,
}


@torch.no_grad()
def main() -> None:
    """Prints one line per switch: accuracy of every task, and the mean."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run")
    arguments.add_argument("--suite", default="glyph8")
    arguments.add_argument("--samples", type=int, default=150)
    given = arguments.parse_args()
    run = MergeRun.open(given.run)
    if run.method.options.model_dump().get("gates") != "adapted":
        arguments.error(f"{given.run}: expected adapted gates, as of --preset learned or reference")
    tests = scored_tasks(open_suite(given.suite), run.tasks, run.base, given.samples)
    few = {f"the {k} strongest experts": k for k in (1, 2, 4) if k < len(run.tasks)}
    for name in (*SWITCHES, *few):
        found = []
        for own, step in enumerate(run.state.steps):
            model = run.model(placement=Placement(strongest=few.get(name)))
            for _, layer in mixtures(model):
                SWITCHES.get(name, keep_all)(layer.gate, own)
            if step.head is not None:
                found.append(100 * accuracy(run.backbone, model, step.head, tests[step.task]))
        print(f"{name:<32}", *(f"{a:5.1f}" for a in found), f"  mean {sum(found) / len(found):.1f}")


if __name__ == "__main__":
    main()
