"""Made-up tables of every kind: one order, many rows and orders with failures, sweeps, a pivot."""

from tests.report.made import CORRUPTIONS, fail, results, row

METRICS = (
    "acc",
    "bwt",
    "normalised_acc",
    "mixed_acc",
    "agnostic_acc",
    "sample_acc",
    "batch_acc",
    "unseen_acc",
)
COSTS = (
    "acc",
    "gate_parameters",
    "parameters",
    "seconds",
    "images_per_second",
    "relative_speed",
    "megabytes",
)
DIVERGED = "a computation left the finite numbers: task letters, step 4"


def demo(tasks=8):
    """One order, two bounds and six merges."""
    rows = [
        row("average", "average", share=0.42, fading=0.035, tasks=tasks),
        row("task arithmetic", "task_arithmetic", share=0.5, fading=0.04, tasks=tasks),
        row("ties", "ties", share=0.35, fading=0.03, tasks=tasks),
        row("opcm", "opcm", share=0.74, fading=0.022, tasks=tasks),
        row("mingle", "mingle", share=0.9, fading=0.004, seconds=52, megabytes=14.6, tasks=tasks),
        row(
            "mingle (reference)", "mingle", "reference",
            share=0.93, fading=0.009, mixed=-0.17, seconds=55, megabytes=14.6, tasks=tasks,
        ),
    ]  # fmt: skip
    columns = ("acc", "bwt", "normalised_acc", "mixed_acc", "fwt", "seconds", "megabytes")
    return results("Demo", rows, columns, tasks=tasks)


def methods(seeds=tuple(range(42, 52)), columns=(*METRICS, "seconds")):
    """Table 1: many rows, several orders; one row failed, one cell failed, one row has fewer orders."""
    many = (
        "average",
        "task arithmetic",
        "MagMax",
        "Consensus TA",
        "OPCM",
        "NuFilt",
        "DOP",
        "TSV-M",
        "Iso-C",
        "WUDI",
    )
    rows = [
        row(
            name,
            name.lower().replace(" ", "_"),
            share=0.3 + 0.04 * i,
            fading=0.02,
            seconds=1 + 2 * i,
            seeds=seeds,
        )
        for i, name in enumerate(many)
    ]
    rows[2] = fail(rows[2], seeds[1:2], "its process died; out of memory? Try fewer --workers")
    rows.insert(2, fail(row("TIES", "ties", seeds=seeds), seeds, DIVERGED))
    rows += [
        row("AdaMerging, restarting", "adamerging", "reference", share=0.4, seeds=seeds, seconds=60),
        row("oracle router", "oracle", share=0.97, seeds=seeds, one_model=False),
        row("mingle", "mingle", share=0.88, fading=0.004, seeds=seeds, seconds=52, megabytes=14.6),
        row("mingle light (MINGLE*)", "mingle", "light", share=0.86, fading=0.004, seeds=seeds, seconds=41),
        row(
            "mingle, released code", "mingle", "reference",
            share=0.93, fading=0.01, mixed=-0.17, seeds=seeds, seconds=55, megabytes=14.6,
        ),
        row("mingle, sequential (MINGLE-Seq)", "mingle_seq", share=0.95, seeds=seeds[:2], needs_labels=True),
    ]  # fmt: skip
    return results("Methods that do not train on labels", rows, columns, seeds)


def _setting(key, value, seeds, share, **point):
    label = ", ".join([*map(str, point.values()), f"{key} {value}"])
    return row(
        label,
        "mingle",
        seeds=seeds,
        share=share,
        seconds=50,
        options={key: value},
        point={key: value, **point},
    )


def sweep(seeds=(42, 43, 44)):
    """Figure 4: three options, everything else at its default."""
    values = {
        "beta": (0.5, 0.9, 0.99, 0.999),
        "gamma": (0.0, 0.5, 1.0, 2.0, 5.0, 20.0),
        "directions": (0, 1, 3, 5, 10),
    }
    rows = [
        _setting(key, value, seeds, 0.8 + 0.02 * i)
        for key, found in values.items()
        for i, value in enumerate(found)
    ]
    return results("Sensitivity to β, γ and k", rows, ("acc", "bwt", "fwt"), seeds, curves=list(values))


def two_curves(seeds=(42, 43, 44)):
    """Table 7: one option at two values of another."""
    rows = [
        _setting("rank", rank, seeds, share + 0.03 * i, sites=sites)
        for sites, share in (("full", 0.75), ("light", 0.72))
        for i, rank in enumerate((4, 8, 16, 32, 64))
    ]
    columns = ("acc", "bwt", "parameters", "megabytes", "images_per_second")
    return results("Rank and insertion sites", rows, columns, seeds, curves=["rank"])


def pivot(seeds=(42, 43, 44)):
    """Table 3: methods under corruptions."""
    rows = []
    bounds = (("base alone", "pretrained", 0.0), ("individual models", "individual", 1.0))
    kinds = (*bounds, ("average", "average", 0.4), ("OPCM", "opcm", 0.7), ("mingle", "mingle", 0.9))
    for label, method, share in kinds:
        for i, name in enumerate(("clean", *CORRUPTIONS)):
            found = row(
                f"{label}, {name.replace('_', ' ')}",
                method,
                seeds=seeds,
                share=share * (1 - 0.09 * i),
                tasks=4,
                point={"method": label, "corruption": name},
                corruption=None if name == "clean" else {"name": name, "severity": 5},
            )
            rows.append(found)
    rows[17] = fail(rows[17], seeds[:1], DIVERGED)
    title = "Corrupted seeds and test images, severity 5"
    return results(title, rows, ("acc",), seeds, tasks=4, pivot="corruption")


def costs(seeds=(42, 43)):
    """Table 15: what the methods of table 1 cost."""
    return {**methods(seeds, COSTS), "title": "Cost"}


EVERY = {
    "demo": demo,
    "methods": methods,
    "sweep": sweep,
    "two_curves": two_curves,
    "pivot": pivot,
    "costs": costs,
}
