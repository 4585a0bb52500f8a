"""Made-up tables of every kind. ``size``: ``tasks`` and ``layers``, for tables that are quick to draw."""

from functools import partial

from tests.report import made
from tests.report.made import CORRUPTIONS, fail

ACCURACIES = tuple(
    "acc bwt normalised_acc mixed_acc agnostic_acc sample_acc batch_acc unseen_acc seconds".split()  # noqa: SIM905
)
COSTS = tuple("acc gate_parameters parameters seconds images_per_second relative_speed megabytes".split())  # noqa: SIM905
DATA_FREE = "average|task arithmetic|MagMax|Consensus TA|OPCM|NuFilt|DOP|TSV-M|Iso-C|WUDI".split("|")  # noqa: SIM905
DIVERGED = "a computation left the finite numbers: task letters, step 4"
DIED = "its process died; out of memory? Try fewer --workers"
SMALL = {"tasks": 2, "layers": 6}


def demo(**size):
    """One order, two bounds and six merges."""
    row = partial(made.row, **size)
    rows = [
        row("average", "average", share=0.42, fading=0.035),
        row("task arithmetic", "task_arithmetic", share=0.5, fading=0.04),
        row("ties", "ties", share=0.35, fading=0.03),
        row("opcm", "opcm", share=0.74, fading=0.022),
        row("mingle", "mingle", share=0.9, fading=0.004, seconds=52, megabytes=14.6),
        row("mingle (reference)", "mingle", "reference", share=0.93, fading=0.009, mixed=-0.17, seconds=55),
    ]
    columns = ("acc", "bwt", "normalised_acc", "mixed_acc", "fwt", "seconds", "megabytes")
    return made.results("Demo", rows, columns, **size)


def methods(seeds=tuple(range(42, 52)), columns=ACCURACIES, **size):
    """Table 1: many rows, several orders; one row failed, one cell failed, one row has fewer orders."""
    row = partial(made.row, seeds=seeds, **size)
    rows = [
        row(name, name.lower().replace(" ", "_"), share=0.3 + 0.04 * i, fading=0.02, seconds=1 + 2 * i)
        for i, name in enumerate(DATA_FREE)
    ]
    rows[2] = fail(rows[2], seeds[1:2], DIED)
    rows.insert(2, fail(row("TIES", "ties"), seeds, DIVERGED))
    rows += [
        row("AdaMerging, restarting", "adamerging", "reference", share=0.4, seconds=60),
        row("oracle router", "oracle", share=0.97, one_model=False),
        row("mingle", "mingle", share=0.88, fading=0.004, seconds=52, megabytes=14.6),
        row("mingle light (MINGLE*)", "mingle", "light", share=0.86, fading=0.004, seconds=41),
        row("mingle, released code", "mingle", "reference", share=0.93, fading=0.01, mixed=-0.17, seconds=55),
        row("mingle, sequential (MINGLE-Seq)", "mingle_seq", share=0.95, needs_labels=True, seeds=seeds[:2]),
    ]
    return made.results("Methods that do not train on labels", rows, columns, seeds, **size)


def sweep(seeds=(42, 43, 44), **size):
    """Figure 4: three options, everything else at its default."""
    values = {
        "beta": (0.5, 0.9, 0.99, 0.999),
        "gamma": (0.0, 0.5, 1.0, 2.0, 5.0, 20.0),
        "directions": (0, 1, 3, 5, 10),
    }
    rows = [
        _setting(f"{key} {value}", {key: value}, share=0.8 + 0.02 * i, seeds=seeds, **size)
        for key, found in values.items()
        for i, value in enumerate(found)
    ]
    columns = ("acc", "bwt", "fwt")
    return made.results("Sensitivity to β, γ and k", rows, columns, seeds, curves=list(values), **size)


def two_curves(seeds=(42, 43, 44), **size):
    """Table 7: one option at two values of another."""
    row = partial(_setting, seeds=seeds, **size)
    rows = [
        row(f"{sites}, rank {rank}", {"rank": rank, "sites": sites}, share=share + 0.03 * i)
        for sites, share in (("full", 0.75), ("light", 0.72))
        for i, rank in enumerate((4, 8, 16, 32, 64))
    ]
    columns = ("acc", "bwt", "parameters", "megabytes", "images_per_second")
    return made.results("Rank and insertion sites", rows, columns, seeds, curves=["rank"], **size)


def pivot(seeds=(42, 43, 44), tasks=4, **size):
    """Table 3: methods under corruptions; one cell failed."""
    bounds = (("base alone", "pretrained", 0.0), ("individual models", "individual", 1.0))
    kinds = (*bounds, ("average", "average", 0.4), ("OPCM", "opcm", 0.7), ("mingle", "mingle", 0.9))
    rows = [
        made.row(
            f"{label}, {name.replace('_', ' ')}",
            method,
            seeds=seeds,
            share=share * (1 - 0.09 * i),
            point={"method": label, "corruption": name},
            corruption=None if name == "clean" else {"name": name, "severity": 5},
            tasks=tasks,
            **size,
        )
        for label, method, share in kinds
        for i, name in enumerate(("clean", *CORRUPTIONS))
    ]
    rows[17] = fail(rows[17], seeds[:1], DIVERGED)
    title = "Corrupted seeds and test images, severity 5"
    return made.results(title, rows, ("acc",), seeds, tasks, pivot="corruption", **size)


def costs(seeds=(42, 43), **size):
    """Table 15: what the methods of table 1 cost."""
    return {**methods(seeds, COSTS, **size), "title": "Cost"}


def _setting(label, point, **more):
    return made.row(label, "mingle", seconds=50, options=point, point=point, **more)


EVERY = {
    "demo": demo,
    "methods": methods,
    "sweep": sweep,
    "two_curves": two_curves,
    "pivot": pivot,
    "costs": costs,
}
