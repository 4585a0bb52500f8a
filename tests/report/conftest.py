"""Made-up results that look like real ones: eight tasks, two bounds and six merges, 36 layers."""

import base64
import copy
import io
import random

import pytest
from PIL import Image, ImageDraw

from mingle.report import render_html

TASKS = ["mnist", "fashion_mnist", "clutter_digits", "letters", "greek", "emoji_animals", "ui_icons", "flags"]
BASE = [0.312, 0.405, 0.188, 0.241, 0.176, 0.533, 0.472, 0.298]
OWN = [0.985, 0.897, 0.931, 0.952, 0.918, 0.884, 0.906, 0.963]
# label, method, preset, share of the way from base to own model, loss per later step, ACC mixed − ACC
MERGES = [
    ("average", "average", "default", 0.42, 0.035, 0.0),
    ("task arithmetic", "task_arithmetic", "default", 0.50, 0.04, 0.0),
    ("ties", "ties", "default", 0.35, 0.03, 0.0),
    ("opcm", "opcm", "default", 0.74, 0.022, 0.0),
    ("mingle", "mingle", "default", 0.90, 0.004, 0.0),
    ("mingle (reference)", "mingle", "reference", 0.93, 0.009, -0.17),
]
KINDS = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
]
LAYERS = [f"encoder.layers.{block}.{kind}" for block in range(6) for kind in KINDS]


def _matrix(rng, share, fading):
    rows = []
    for t in range(len(TASKS)):
        rows.append(
            [
                min(0.999, BASE[i] + (OWN[i] - BASE[i]) * share - fading * (t - i) + rng.uniform(-0.01, 0.01))
                for i in range(t + 1)
            ]
        )
    return rows


def _metrics(matrix, mixed):
    last, T = matrix[-1], len(matrix)
    acc = sum(last) / T
    return {
        "acc": acc,
        "bwt": sum(last[i] - matrix[i][i] for i in range(T - 1)) / (T - 1),
        "fwt": sum(matrix[t][t] - OWN[t] for t in range(1, T)) / (T - 1),
        "normalised_acc": sum(a / own for a, own in zip(last, OWN, strict=True)) / T,
        "mixed_acc": None if mixed is None else acc + mixed,
    }


def _gates(rng, noise):
    def value(layer, row, column):
        depth = (layer // 6 + 1) / 6
        own = 0.1 + 0.75 * depth * rng.uniform(0.7, 1.1) if row == column else 0.0
        leak = rng.uniform(-0.5, 1.0) * (0.22 if row > column else 0.05) * depth - noise * (row > column + 2)
        return own + leak + rng.gauss(0, noise)

    n = range(len(TASKS))
    mean = [[[value(layer, i, j) for j in n] for i in n] for layer in range(len(LAYERS))]
    return {"experts": TASKS, "inputs": TASKS, "layers": LAYERS, "mean": mean}


def _energy(rng):
    found = []
    for t, task in enumerate(TASKS):
        projection = 0.018 * t * rng.uniform(0.7, 1.2)
        not_merged = rng.uniform(0.04, 0.16)
        rank = rng.uniform(0.18, 0.3)
        kept = 1 - projection - not_merged - rank
        parts = {"kept": kept, "projection": projection, "rank": rank, "not_merged": not_merged}
        found.append({"task": task, **parts})
    return found


def _losses(rng):
    return [
        [(0.9 + 0.1 * t) * 0.93**m + 0.12 + abs(rng.gauss(0, 0.04)) for m in range(50)]
        for t in range(len(TASKS))
    ]


def _settings(method, preset):
    if method != "mingle":
        return {"scale": 0.3} if method == "task_arithmetic" else {}
    reference = preset == "reference"
    return {
        "sites": "full",
        "rank": 16,
        "projection": "block",
        "gate_reduction": "batch" if reference else "sample",
        "gate_init": "normal" if reference else "zeros",
        "gate_bias": "free" if reference else "augmented",
        "null_space": "relaxed",
        "acts_on": "gradient" if reference else "update",
        "beta": 0.99,
        "gamma": 1.0,
        "steps": 50,
        "lr": 0.0006,
        "batch_size": 16,
        "loss": "soft_ce" if reference else "kl",
        "seeds": "label" if reference else "random",
        "seed_pool": "scored" if reference else "held_out",
    }


def _row(label, method, preset, matrix, mixed, **more):
    row = {
        "label": label,
        "method": method,
        "preset": preset,
        "one_model": method != "individual",
        "settings": _settings(method, preset),
        "matrix": matrix,
        "metrics": _metrics(matrix, mixed),
        "seconds": 1.4,
        "bytes": 5_120_000,
        "seed_samples": None,
        "energy": None,
        "losses": None,
        "gates": None,
    }
    return row | more


def _image(rng, truth):
    image = Image.new("RGB", (32, 32), tuple(rng.randrange(20, 90) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 28, 28), fill=tuple(rng.randrange(90, 200) for _ in range(3)))
    pen.text((13, 10), truth[0], fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _examples(rng, rows):
    truths = ["7", "ankle boot", "3", "Q", "omega", "octopus", "magnifier", "Côte d'Ivoire"]
    wrong = ["1", "sandal", "8", "O", "psi", "snail", "bell", "Ireland"]
    found = []
    for i, task in enumerate(TASKS):
        for _ in range(2):
            said = {
                row["label"]: truths[i] if rng.random() < row["matrix"][-1][i] else wrong[i] for row in rows
            }
            found.append(
                {"task": task, "image": _image(rng, truths[i]), "truth": truths[i], "predictions": said}
            )
    return found


def _results():
    rng = random.Random(3)
    still = [[BASE[: t + 1], OWN[: t + 1]] for t in range(len(TASKS))]
    rows = [
        _row("base alone", "pretrained", "default", [a for a, _ in still], sum(BASE) / 8 - sum(BASE) / 8),
        _row("individual models", "individual", "default", [b for _, b in still], None, bytes=41_000_000),
    ]
    rows[0]["metrics"]["bwt"] = rows[1]["metrics"]["bwt"] = 0.0
    for label, method, preset, share, fading, mixed in MERGES:
        row = _row(label, method, preset, _matrix(rng, share, fading), mixed)
        if method == "mingle":
            row |= {
                "seconds": 48.0 + 60 * rng.random(),
                "bytes": 14_600_000,
                "seed_samples": {
                    "source": "glyph8",
                    "selection": "label" if preset == "reference" else "random",
                    "used": [50] * len(TASKS),
                    "excluded_from_score": 0,
                },
                "energy": _energy(rng),
                "losses": _losses(rng),
                "gates": _gates(rng, 0.06 if preset == "reference" else 0.01),
            }
        rows.append(row)
    return {
        "schema": 1,
        "suite": "glyph8",
        "order": TASKS,
        "samples_per_task": 200,
        "test_samples": 400,
        "versions": {"python": "3.11.2", "mingle-merge": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux x86_64", "cpu": "AVX2", "cores": 2, "threads": 2},
        "created": "2026-11-21T04:00:00+00:00",
        "seed": 42,
        "command": "mingle demo --suite glyph8 --samples 200 --seed 42",
        "base_fingerprint": "9f2c44d1e07ab1c2",
        "base": BASE,
        "individual": OWN,
        "rows": rows,
        "examples": _examples(rng, rows),
    }


def _cut(results, tasks=2, layers=6):
    """The same results with the first tasks and layers and with four rows: quick to draw."""
    first = results["order"][:tasks]
    for key in ("order", "base", "individual"):
        results[key] = results[key][:tasks]
    results["rows"] = [results["rows"][i] for i in (0, 1, 2, 6)]
    results["examples"] = results["examples"][:2]
    for row in results["rows"]:
        row["matrix"] = row["matrix"][:tasks]
        for part in ("energy", "losses"):
            row[part] = row[part] and row[part][:tasks]
        if gates := row["gates"]:
            mean = [[values[:tasks] for values in layer[:tasks]] for layer in gates["mean"][:layers]]
            row["gates"] = {
                "inputs": first,
                "experts": first,
                "layers": gates["layers"][:layers],
                "mean": mean,
            }
    return results


@pytest.fixture(scope="session")
def made():
    """The results as they are; not to be changed."""
    return _results()


@pytest.fixture(scope="session")
def page(made):
    """The whole report."""
    return render_html(made)


@pytest.fixture
def results(made):
    """A copy of the results for one test."""
    return copy.deepcopy(made)


@pytest.fixture
def small(results):
    """A copy with two tasks and four rows."""
    return _cut(results)
