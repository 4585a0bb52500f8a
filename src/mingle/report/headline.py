"""The result in one plain sentence, whichever method wins, and what has to be said with it."""

from mingle.report.columns import COLUMNS, with_spread
from mingle.report.formats import counted, percent, points
from mingle.report.reading import (
    CORRUPTED,
    Results,
    Row,
    accuracies,
    deviation,
    done,
    main_metric,
    mean,
    metric,
    part,
    ranking,
    spread_of,
)

CLEAR = 2
"""Standard errors that a difference has to reach before it is called one."""


def headline(results: Results) -> str:
    """One sentence: accuracy of the best merge, its share of the individual models', what was forgotten."""
    tasks = results["orders"][0]["tasks"]
    checkpoints = counted(len(tasks), "checkpoint")
    ranked = ranking(results)
    if not ranked:
        return f"{checkpoints}, and no merged model to compare in these results."
    best, key = ranked[0], main_metric(results)
    over = f" over {len(done(best))} orders" if len(done(best)) > 1 else ""
    if key == CORRUPTED:
        return (
            f"{checkpoints}, one model: {share(best, key)} % mean accuracy under corruption{over}, "
            f"{share(best, 'acc')} % without."
        )
    facts = [f"{checkpoints}, one model: {share(best, 'acc')} % mean accuracy{over}"]
    if metric(best, "normalised_acc") is not None:
        facts.append(f"{share(best, 'normalised_acc')} % of the individual models’ accuracy")
    facts += _forgetting(best)
    if _depends_on_batches(best):
        facts.append(f"{share(best, 'mixed_acc')} % when tasks share batches")
    base = accuracies(results, "base", tasks)
    if base:
        facts += _against_base(metric(best, "acc") or 0.0, mean(base))
    return ", ".join(facts) + "."


def _against_base(score: float, base: float) -> list[str]:
    """Nothing where the merge is ahead: that needs no warning."""
    if percent(score) == percent(base):
        return ["level with the base alone"]
    return [f"less than the {percent(base)} % of the base alone"] if score < base else []


def lead(results: Results) -> list[str]:
    """The sentences that belong to the headline: who won, by how much, between which bounds."""
    ranked = ranking(results)
    sentences = [*_contest(results, ranked), *_limits(results)]
    if ranked and main_metric(results) == "acc":
        sentences += _mixed(ranked)
    return sentences


def share(row: Row, key: str) -> str:
    """A share with its spread over orders: ``47.0 ± 1.2``."""
    found = deviation(row, key)
    return with_spread(percent(metric(row, key)), "" if found is None else percent(found))


def sampling_error(row: Row, samples: int) -> float | None:
    """Standard error of one order's ACC, each accuracy being a share of ``samples`` independent samples."""
    matrix = part(row, "matrix")
    if matrix is None:
        return None
    return float(sum(a * (1 - a) / samples for a in matrix[-1]) ** 0.5 / len(matrix[-1]))


def _forgetting(row: Row) -> list[str]:
    bwt = metric(row, "bwt")
    if bwt is None:
        return []
    if points(bwt) == "0.0":
        return ["nothing forgotten"]
    written = with_spread(points(bwt), COLUMNS["bwt"].plus_minus(row))
    if bwt > 0:
        return [f"{written} points on earlier tasks since they were merged"]
    return [f"{written.lstrip('−')} points forgotten"]


def _contest(results: Results, ranked: list[Row]) -> list[str]:
    if not ranked:
        return []
    best = ranked[0]
    if len(ranked) == 1:
        return [f"Merged with {best['label']}."]
    second, key = ranked[1], main_metric(results)
    relation = "level with" if percent(metric(best, key)) == percent(metric(second, key)) else "ahead of"
    kind = "merging methods" if len({row["method"] for row in ranked}) > 1 else "settings"
    winner = f"Best of {len(ranked)} {kind}: {best['label']}"
    sentence = f"{winner}, {relation} {second['label']} ({share(second, key)} %)."
    return [sentence, *(_by_orders(best, second, key) or _by_samples(results, best, second))]


def _by_orders(best: Row, second: Row, key: str) -> list[str]:
    """How sure the lead is: the difference of the two in the orders that both have."""
    others = {cell["seed"]: cell["metrics"][key] for cell in done(second) if key in cell["metrics"]}
    pairs = [
        cell["metrics"][key] - others[cell["seed"]]
        for cell in done(best)
        if key in cell["metrics"] and cell["seed"] in others
    ]
    middle, spread = spread_of(pairs)
    if middle is None or spread is None:
        return []
    ahead = sum(difference > 0 for difference in pairs)
    sentence = (
        f"It is ahead in {ahead} of {len(pairs)} orders, by {points(middle)} ± {percent(spread)} points"
    )
    if middle < CLEAR * spread / len(pairs) ** 0.5:
        return [f"{sentence}: that gap is within what the order of the tasks alone explains."]
    return [f"{sentence}."]


def _by_samples(results: Results, best: Row, second: Row) -> list[str]:
    """With a single order all that can be said is what chance does to the scored samples."""
    samples = results.get("samples_per_task")
    if not samples or main_metric(results) != "acc":
        return []
    errors = [sampling_error(row, samples) for row in (best, second)]
    gap = (metric(best, "acc") or 0) - (metric(second, "acc") or 0)
    if None not in errors and gap < CLEAR * sum(error**2 for error in errors if error) ** 0.5:
        return [f"With {samples} scored samples per task that gap is within the sampling error."]
    return []


def _limits(results: Results) -> list[str]:
    tasks = results["orders"][0]["tasks"]
    base, own = (accuracies(results, bound, tasks) for bound in ("base", "individual"))
    facts = []
    if base:
        facts.append(f"the base alone scores {percent(mean(base))} %")
    if own:
        facts.append(f"each task’s own model {'' if base else 'scores '}{percent(mean(own))} %")
    clean = " on clean images" if main_metric(results) == CORRUPTED else ""
    text = ", ".join(facts) + (f"{clean}." if base or not own else f" on average{clean}.")
    return [text[0].upper() + text[1:]] if facts else []


def _depends_on_batches(row: Row) -> bool:
    mixed, own = metric(row, "mixed_acc"), metric(row, "acc")
    return mixed is not None and own is not None and abs(mixed - own) >= 0.005


def _mixed(ranked: list[Row]) -> list[str]:
    """Who leads when tasks share batches, where that is somebody else."""
    first = max(ranked, key=lambda row: metric(row, "mixed_acc") or 0.0)
    if first is ranked[0] or not _depends_on_batches(ranked[0]):
        return []
    score = share(first, "mixed_acc")
    return [f"When the samples of all tasks share batches, {first['label']} leads with {score} %."]
