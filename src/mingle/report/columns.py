"""The columns of a table: what every metric and cost is called, how it is written, and what it means."""

from collections.abc import Callable
from dataclasses import dataclass

from mingle.report import formats
from mingle.report.reading import CORRUPTED, Results, Row, deviation, metric

Written = Callable[[float | None], str]


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    ``show`` writes a mean, ``spread`` a standard deviation. ``better``: 1 where more is better, −1 where less
    is, 0 where nothing is marked. ``formula`` and ``meaning`` stand under the table.
    """

    key: str
    title: str
    meaning: str
    formula: str = ""
    show: Written = formats.percent
    spread: Written = formats.percent
    better: int = 1

    def number(self, row: Row) -> str:
        """The mean of a row as people read it."""
        return self.show(metric(row, self.key))

    def plus_minus(self, row: Row) -> str:
        """The standard deviation over orders; empty with one order, or where a count never changes."""
        found = deviation(row, self.key)
        return "" if found is None or (found == 0 and not self.better) else self.spread(found)

    def text(self, row: Row) -> str:
        """``47.0 ± 1.2``, or the number alone."""
        return with_spread(self.number(row), self.plus_minus(row))


def with_spread(number: str, spread: str) -> str:
    """``47.0 ± 1.2``, or the number alone where there is no spread."""
    return f"{number} ± {spread}" if spread else number


def _cost(key: str, title: str, meaning: str, show: Written, better: int) -> Column:
    return Column(key, title, meaning, show=show, spread=show, better=better)


_KNOWN = (
    Column("acc", "ACC %", "mean accuracy of the final model over all tasks", "mean_i a[T][i]"),
    Column(
        "bwt",
        "BWT",
        "in points; negative means forgetting",
        "1/(T−1) Σ_{i<T} (a[T][i] − a[i][i])",
        show=formats.points,
    ),
    Column(
        "normalised_acc",
        "normalised ACC %",
        "share of each task's own fine-tuned model",
        "mean_i a[T][i] / individual[i]",
    ),
    Column("mixed_acc", "mixed ACC %", "ACC when samples of all tasks are interleaved in the same batches"),
    Column(
        "agnostic_acc",
        "agnostic ACC %",
        "ACC when no task is named and the answer is sought among the classes of all tasks",
    ),
    Column(
        "routed_acc",
        "routed ACC %",
        "ACC when no task is named and the head of the expert with the largest |gate| answers",
    ),
    Column(
        "h_score",
        "H-score %",
        "harmonic mean of ACC on the first half of the tasks, merged, and on the other half, not merged yet",
        "2 a b / (a + b), h = ⌈T/2⌉, a = mean_{i≤h} a[h][i], b = mean_{i>h} a[h][i]",
    ),
    Column(
        "router_acc",
        "router accuracy %",
        "share of samples whose largest |gate| is their own task's, in the mean over layers",
    ),
    Column("sample_acc", "per-sample ACC %", "ACC of the same weights with gates of every sample alone"),
    Column(
        "batch_acc",
        "per-batch ACC %",
        "ACC of the same weights with gates averaged over batches of one task, which gives the task away",
    ),
    Column("unseen_acc", "unseen ACC %", "ACC without the samples that were used as seeds"),
    Column(
        "fwt",
        "FWT",
        "in points, as in the paper's appendix: a task right after it was merged, against its own model",
        "1/(T−1) Σ_{t≥2} (a[t][t] − individual[t])",
        show=formats.points,
    ),
    _cost("seconds", "seconds", "time of all merging steps together", formats.seconds, -1),
    _cost(
        "adaptation_seconds",
        "adaptation s",
        "the part of them that gates take, seeds and subspaces included",
        formats.seconds,
        -1,
    ),
    _cost("megabytes", "MB on disk", "million bytes that the method keeps at the end", formats.megabytes, -1),
    _cost("parameters", "parameters", "numbers in the final model with its experts", formats.count, 0),
    _cost("gate_parameters", "gate parameters", "numbers in the gates of one task", formats.count, 0),
    _cost(
        "images_per_second",
        "images/s",
        "test samples per second through the final model, on the machine that scored it",
        formats.rate,
        1,
    ),
    _cost(
        "relative_speed",
        "relative speed",
        "images/s of the final model as a share of the base's, timed one after the other",
        formats.ratio,
        1,
    ),
)

COLUMNS = {column.key: column for column in _KNOWN}

ACCURACIES = "accuracy on task i of the model as it is after step t; T tasks"
"""What ``a[t][i]`` is."""


def columns_of(results: Results) -> list[Column]:
    """The columns of a table; of a pivot, the values that it varies."""
    if results["pivot"]:
        return [_pivoted(key) for key in results["columns"]]
    return [COLUMNS.get(key) or _unknown(key) for key in results["columns"]]


def definitions(results: Results) -> list[tuple[str, str, str]]:
    """Name, formula and meaning of everything that the table's columns show."""
    columns = columns_of(results)
    if results["pivot"]:
        columns = [COLUMNS["acc"], *(column for column in columns if column.meaning)]
    named = [(column.title.removesuffix(" %"), column.formula, column.meaning) for column in columns]
    return [("a[t][i]", "", ACCURACIES), *named]


def _pivoted(key: str) -> Column:
    if key == CORRUPTED:
        return Column(key, "mean of corrupted %", "mean ACC over the corruptions; clean images do not count")
    return Column(key, f"{key.replace('_', ' ')} %", "")


def _unknown(key: str) -> Column:
    """A column of somebody else's table."""
    return _cost(key, key.replace("_", " "), "as the results file has it", formats.plain, 0)
