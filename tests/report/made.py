"""Made-up results of schema 2 that look like real ones: eight tasks, 36 layers, every kind of table."""

import base64
import io
import random
import statistics

from PIL import Image, ImageDraw

TASKS = ["mnist", "fashion_mnist", "clutter_digits", "letters", "greek", "emoji_animals", "ui_icons", "flags"]
BASE = dict(zip(TASKS, [0.312, 0.405, 0.188, 0.241, 0.176, 0.533, 0.472, 0.298], strict=True))
OWN = dict(zip(TASKS, [0.985, 0.897, 0.931, 0.952, 0.918, 0.884, 0.906, 0.963], strict=True))
TRUTHS = ["7", "ankle boot", "3", "Q", "omega", "octopus", "magnifier", "Côte d'Ivoire"]
WRONG = ["1", "sandal", "8", "O", "psi", "snail", "bell", "Ireland"]
KINDS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
CORRUPTIONS = ("motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast", "jpeg")


def order(seed, tasks=8):
    """The order of the tasks of a seed."""
    found = TASKS[:tasks]
    random.Random(seed).shuffle(found)
    return found


def matrix_of(rng, tasks, share, fading):
    return [
        [
            min(0.999, BASE[i] + (OWN[i] - BASE[i]) * share - fading * (t - k) + rng.uniform(-0.02, 0.02))
            for k, i in enumerate(tasks[: t + 1])
        ]
        for t in range(len(tasks))
    ]


def metrics_of(matrix, tasks, mixed):
    """The metrics that follow from a matrix, and made-up ones beside it."""
    last, T = matrix[-1], len(matrix)
    acc = sum(last) / T
    return {
        "acc": acc,
        "bwt": sum(last[i] - matrix[i][i] for i in range(T - 1)) / (T - 1) if T > 1 else None,
        "fwt": sum(matrix[t][t] - OWN[tasks[t]] for t in range(1, T)) / (T - 1) if T > 1 else None,
        "normalised_acc": sum(a / OWN[t] for a, t in zip(last, tasks, strict=True)) / T,
        "mixed_acc": None if mixed is None else acc + mixed,
        "agnostic_acc": None if mixed is None else acc - 0.21,
        "sample_acc": None if mixed is None else acc,
        "batch_acc": None if mixed is None else acc + 0.04,
        "unseen_acc": None if mixed is None else acc - 0.002,
    }


def gates_of(rng, tasks, noise, layers):
    """Gates with a diagonal that grows with depth, and leaks below it."""

    def value(layer, row, column):
        depth = (layer // 6 + 1) / 6
        own = 0.1 + 0.75 * depth * rng.uniform(0.7, 1.1) if row == column else 0.0
        return own + rng.uniform(-0.5, 1.0) * (0.22 if row > column else 0.05) * depth + rng.gauss(0, noise)

    n = range(len(tasks))
    mean = [[[value(layer, i, j) for j in n] for i in n] for layer in range(layers)]
    names = [f"encoder.layers.{layer // 6}.{KINDS[layer % 6]}" for layer in range(layers)]
    return {"experts": tasks, "inputs": tasks, "layers": names, "mean": mean}


def energy_of(rng, tasks):
    found = []
    for t, task in enumerate(tasks):
        parts = {"projection": 0.018 * t * rng.uniform(0.7, 1.2), "not_merged": rng.uniform(0.04, 0.16)}
        parts["rank"] = rng.uniform(0.18, 0.3)
        found.append({"task": task, **parts, "kept": 1 - sum(parts.values())})
    return found


def settings_of(method, preset, **changes):
    if method == "task_arithmetic":
        return {"scale": 0.3}
    if method != "mingle":
        return {}
    reference = preset == "reference"
    return {
        "sites": "full",
        "rank": 16,
        "projection": "block",
        "gate_reduction": "batch" if reference else "sample",
        "gate_bias": "free" if reference else "augmented",
        "acts_on": "gradient" if reference else "update",
        "beta": 0.99,
        "gamma": 1.0,
        "directions": 3,
        "steps": 50,
        "lr": 0.0006,
        "seeds": "label" if reference else "random",
        "seed_pool": "scored" if reference else "held_out",
        **changes,
    }


def details_of(rng, method, matrix, tasks, layers):
    """What only the first order keeps."""
    last = dict(zip(tasks, matrix[-1], strict=True))
    said = {
        task: [TRUTHS[i] if rng.random() < last[task] else WRONG[i] for _ in range(2)]
        for i, task in enumerate(TASKS)
        if task in last
    }
    found = {"examples": said, "gates": None, "energy": None, "losses": None, "seed_samples": None}
    if method != "mingle":
        return found
    losses = [
        [(0.9 + 0.1 * t) * 0.93**m + 0.12 + abs(rng.gauss(0, 0.04)) for m in range(50)]
        for t in range(len(tasks))
    ]
    seeds = {"source": "glyph8", "selection": "random", "used": [50] * len(tasks)}
    gates = gates_of(rng, tasks, 0.02, layers)
    return found | {"gates": gates, "energy": energy_of(rng, tasks), "losses": losses, "seed_samples": seeds}


def row(label, method, preset="default", seeds=(42,), **more):
    """A row of a table; ``share``, ``fading``, ``mixed``, ``seconds`` and ``megabytes`` make its numbers."""
    made = {
        "share": 0.5,
        "fading": 0.01,
        "mixed": 0.0,
        "seconds": 1.4,
        "megabytes": 5.1,
        "tasks": 8,
        "layers": 36,
    }
    made |= {name: more.pop(name) for name in tuple(more) if name in made}
    rng = random.Random(label)
    cells = [_cell(rng, method, order(seed, made["tasks"]), seed, made) for seed in seeds]
    for cell in cells[1:]:
        for part in ("examples", "gates", "energy", "losses", "seed_samples"):
            cell.pop(part)
    found = {
        "label": label,
        "method": method,
        "preset": preset,
        "options": {},
        "point": {},
        "corruption": None,
        "bound": method in ("pretrained", "individual"),
        "one_model": method != "individual",
        "needs_labels": False,
        "settings": settings_of(method, preset, **more.get("options", {})),
        "cells": cells,
    }
    return summed(found | more)


def _cell(rng, method, tasks, seed, made):
    if method in ("pretrained", "individual"):
        known = BASE if method == "pretrained" else OWN
        matrix = [[known[task] for task in tasks[: t + 1]] for t in range(len(tasks))]
    else:
        matrix = matrix_of(rng, tasks, made["share"] + rng.uniform(-0.02, 0.02), made["fading"])
    mixed = None if method == "individual" else made["mixed"]
    cost = {"seconds": made["seconds"] * rng.uniform(0.9, 1.1), "megabytes": made["megabytes"]}
    cost |= {
        "parameters": 1_270_000 + 31_000 * made["megabytes"],
        "gate_parameters": 83_000,
        "relative_speed": 0.92,
    }
    return {
        "seed": seed,
        "tasks": tasks,
        "status": "done",
        "matrix": matrix,
        "metrics": metrics_of(matrix, tasks, mixed),
        "cost": {**cost, "images_per_second": rng.uniform(800, 860)},
        **details_of(rng, method, matrix, tasks, made["layers"]),
    }


def fail(found, seeds, reason):
    """The row with cells that failed in some of its orders."""
    cells = [
        {"seed": c["seed"], "tasks": c["tasks"], "status": "failed", "reason": reason}
        if c["seed"] in seeds
        else c
        for c in found["cells"]
    ]
    return summed({**found, "cells": cells})


def summed(found):
    """The row with mean and sample standard deviation of its finished cells, as in a benchmark."""
    values = [{**c["metrics"], **c["cost"]} for c in found["cells"] if c["status"] == "done"]
    whole = {name: [v[name] for v in values] for name in (values[0] if values else ())}
    kept = {name: None if None in found else found for name, found in whole.items()}
    return {
        **found,
        "mean": {name: v and statistics.fmean(v) for name, v in kept.items()},
        "std": {name: statistics.stdev(v) if v and len(v) > 1 else None for name, v in kept.items()},
    }


def bounds(**size):
    """Base and individual models: one order each."""
    return [
        row("base alone", "pretrained", seconds=0.0, megabytes=0.1, **size),
        row("individual models", "individual", seconds=0.1, megabytes=41.0, **size),
    ]


def _image(rng, truth):
    image = Image.new("RGB", (32, 32), tuple(rng.randrange(20, 90) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 28, 28), fill=tuple(rng.randrange(90, 200) for _ in range(3)))
    pen.text((13, 10), truth[0], fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def results(title, rows, columns, seeds=(42,), tasks=8, layers=36, **more):
    """Results of a table."""
    rng = random.Random(1)
    known = TASKS[:tasks]
    return {
        "schema": 2,
        "table": "made",
        "title": title,
        "columns": list(columns),
        "pivot": None,
        "curves": [],
        "suite": {
            "name": "glyph8",
            "backbone": "clip",
            "tasks": known,
            "fingerprints": {"base": "9f2c44d1e07ab1c2"}
            | {task: f"{i:064x}" for i, task in enumerate(known)},
        },
        "orders": [{"seed": seed, "tasks": order(seed, tasks)} for seed in seeds],
        "samples_per_task": 200,
        "bounds": {"base": {t: BASE[t] for t in known}, "individual": {t: OWN[t] for t in known}},
        "rows": [*bounds(tasks=tasks, layers=layers), *rows],
        "versions": {"python": "3.11.2", "mingle-merge": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux x86_64", "cpu": "AVX2", "cores": 2, "threads": 2},
        "created": "2026-11-21T04:00:00+00:00",
        "command": "mingle bench made --suite glyph8 --orders 42-44",
        "examples": [
            {"task": task, "image": _image(rng, TRUTHS[i]), "truth": TRUTHS[i]}
            for i, task in enumerate(known)
            for _ in range(2)
        ],
        **more,
    }
