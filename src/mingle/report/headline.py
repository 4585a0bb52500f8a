"""The result in one plain sentence, whichever method wins, and what has to be said with it."""

from mingle.report.formats import counted, percent, points
from mingle.report.reading import Results, Row, base_accuracies, mean, merges, metric


def headline(results: Results) -> str:
    """One sentence: accuracy of the best merge, its share of the individual models', what was forgotten."""
    checkpoints = counted(len(results["order"]), "checkpoint")
    ranked = ranking(results)
    if not ranked:
        return f"{checkpoints}, and no merged model in these results."
    best = ranked[0]
    accuracy = _acc(best)
    facts = [f"{checkpoints}, one model: {percent(accuracy)} % mean accuracy"]
    share = metric(best, "normalised_acc")
    if share is not None:
        facts.append(f"{percent(share)} % of the individual models’ accuracy")
    facts += _forgetting(metric(best, "bwt"))
    if _depends_on_batches(best):
        facts.append(f"{percent(metric(best, 'mixed_acc'))} % when tasks share batches")
    base = base_accuracies(results)
    if base and accuracy < mean(base):
        facts.append(f"less than the {percent(mean(base))} % of the base alone")
    return ", ".join(facts) + "."


def lead(results: Results) -> list[str]:
    """The sentences that belong to the headline: who won, by how much, between which bounds."""
    ranked = ranking(results)
    sentences = [*_contest(results, ranked), _limits(results)]
    if ranked:
        sentences += _mixed(ranked)
    return sentences


def ranking(results: Results) -> list[Row]:
    """The merges that have an accuracy, best first."""
    scored = [row for row in merges(results) if metric(row, "acc") is not None]
    return sorted(scored, key=_acc, reverse=True)


def standard_error(row: Row, samples: int) -> float:
    """Standard error of a row's ACC, each accuracy being a share of ``samples`` independent samples."""
    final = row["matrix"][-1]
    return float(sum(a * (1 - a) / samples for a in final) ** 0.5 / len(final))


def _acc(row: Row) -> float:
    return metric(row, "acc") or 0.0


def _forgetting(bwt: float | None) -> list[str]:
    if bwt is None:
        return []
    written = points(bwt)
    if written == "0.0":
        return ["nothing forgotten"]
    if bwt > 0:
        return [f"{written} points on earlier tasks since they were merged"]
    return [f"{written.lstrip('−')} points forgotten"]


def _contest(results: Results, ranked: list[Row]) -> list[str]:
    if not ranked:
        return []
    best = ranked[0]
    if len(ranked) == 1:
        return [f"Merged with {best['label']}."]
    second = ranked[1]
    score, other = percent(_acc(best)), percent(_acc(second))
    relation = "level with" if score == other else "ahead of"
    sentence = (
        f"Best of {len(ranked)} merging methods: {best['label']}, {relation} {second['label']} ({other} %)."
    )
    samples = results.get("samples_per_task")
    if not samples:
        return [sentence]
    doubt = 2 * (standard_error(best, samples) ** 2 + standard_error(second, samples) ** 2) ** 0.5
    if _acc(best) - _acc(second) < doubt:
        return [sentence, f"With {samples} scored samples per task that gap is within the sampling error."]
    return [sentence]


def _limits(results: Results) -> str:
    own = f"{percent(mean(results['individual']))} %"
    base = base_accuracies(results)
    if base is None:
        return f"Each task’s own model scores {own} on average."
    return f"The base alone scores {percent(mean(base))} %, each task’s own model {own}."


def _depends_on_batches(row: Row) -> bool:
    mixed = metric(row, "mixed_acc")
    return mixed is not None and abs(mixed - _acc(row)) >= 0.005


def _mixed(ranked: list[Row]) -> list[str]:
    """Who leads when tasks share batches, where that is somebody else."""
    first = max(ranked, key=lambda row: metric(row, "mixed_acc") or 0.0)
    if first is ranked[0] or not _depends_on_batches(ranked[0]):
        return []
    score = percent(metric(first, "mixed_acc"))
    return [f"When the samples of all tasks share batches, {first['label']} leads with {score} %."]
