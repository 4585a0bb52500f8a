import pytest

from mingle.report.headline import headline, lead, sampling_error
from mingle.report.reading import readable
from tests.report import made
from tests.report.made_tables import methods, pivot, sweep


def only(results, *labels, **metrics):
    """The results with some rows alone; ``metrics`` replaces means of the last of them."""
    results["rows"] = [row for row in results["rows"] if row["label"] in labels]
    results["rows"][-1]["mean"] |= metrics
    return results


def of_two(first, second):
    """Results of two methods with these accuracies, one per order."""
    rows = []
    for label, accuracies in (("one", first), ("two", second)):
        row = made.row(label, label, seeds=range(len(accuracies)), tasks=2, layers=6)
        for cell, acc in zip(row["cells"], accuracies, strict=True):
            cell["metrics"] |= {"acc": acc, "mixed_acc": acc}
        rows.append(made.summed(row))
    return made.results("Two", rows, ("acc",), range(len(first)), tasks=2, layers=6)


def test_best_merge_with_its_share_and_what_it_forgot(results):
    only(results, "mingle", acc=0.841, bwt=-0.012, normalised_acc=0.93, mixed_acc=0.841)
    assert headline(results) == (
        "Eight checkpoints, one model: 84.1 % mean accuracy, 93.0 % of the individual models’ accuracy, "
        "1.2 points forgotten."
    )
    assert lead(results)[0] == "Merged with mingle."


@pytest.mark.parametrize("winner", ["average", "ties", "opcm", "mingle"])
def test_whoever_wins_is_named(results, winner):
    for row in results["rows"]:
        row["mean"]["acc"] = 0.95 if row["label"] == winner else 0.4
    assert "95.0 % mean accuracy" in headline(results)
    assert lead(results)[0].startswith(f"Best of 6 merging methods: {winner}, ahead of ")
    assert "sampling error" not in " ".join(lead(results))


def test_several_orders_are_said_with_their_deviation():
    found = of_two((0.5, 0.54), (0.4, 0.4))
    assert "52.0 ± 2.8 % mean accuracy over 2 orders" in headline(found)
    assert lead(found)[:2] == [
        "Best of 2 merging methods: one, ahead of two (40.0 ± 0.0 %).",
        "It is ahead in 2 of 2 orders, by +12.0 ± 2.8 points.",
    ]


def test_a_lead_that_changes_with_the_order_is_no_lead():
    assert lead(of_two((0.5, 0.6, 0.41), (0.4, 0.5, 0.6)))[1] == (
        "It is ahead in 2 of 3 orders, by +0.3 ± 16.7 points: "
        "that gap is within what the order of the tasks alone explains."
    )


def test_orders_are_compared_pairwise():
    """Orders that differ for both alike do not blur the difference; unshared orders do not count."""
    found = of_two((0.2, 0.5, 0.8), (0.19, 0.49, 0.79))
    assert lead(found)[1] == "It is ahead in 3 of 3 orders, by +1.0 ± 0.0 points."
    found["rows"][3] = made.fail(found["rows"][3], [2], "died")
    assert "2 of 2 orders" in lead(found)[1]


@pytest.mark.parametrize("change", [{"one_model": False}, {"needs_labels": True}])
def test_who_is_told_the_task_or_trains_on_labels_does_not_win(results, change):
    winner = next(row for row in results["rows"] if row["label"] == "ties")
    winner |= change
    winner["mean"]["acc"] = 0.99
    assert "99.0" not in headline(results)
    assert lead(results)[0].startswith("Best of 5 merging methods")


def test_losing_to_the_base_is_said(results):
    only(results, "base alone", "ties", acc=0.25, mixed_acc=0.25)
    assert headline(results).endswith("less than the 32.8 % of the base alone.")


def test_a_difference_that_is_not_shown_is_not_called_one(results):
    for acc in (0.3279, 0.3281):
        only(results, "base alone", "ties", acc=acc, mixed_acc=acc)
        assert headline(results).endswith("level with the base alone.")


def test_a_bound_is_never_the_winner(results):
    only(results, "base alone", "individual models", "average", acc=0.4, mixed_acc=0.4)
    assert "40.0 % mean accuracy" in headline(results)


@pytest.mark.parametrize(
    ("bwt", "words"),
    [(0.004, "+0.4 points on earlier tasks"), (0.0, "nothing forgotten"), (-0.0001, "nothing forgotten")],
)
def test_forgetting(results, bwt, words):
    assert words in headline(only(results, "mingle", bwt=bwt))


def test_one_task_has_nothing_to_forget(results):
    results["orders"] = [{"seed": 1, "tasks": ["mnist"]}]
    assert headline(only(results, "mingle", acc=0.9, mixed_acc=0.9, bwt=None, normalised_acc=None)) == (
        "One checkpoint, one model: 90.0 % mean accuracy."
    )


def test_a_score_that_depends_on_the_batch_is_said(results):
    only(results, "mingle", "mingle (reference)", acc=0.95, mixed_acc=0.6)
    assert headline(results).endswith("60.0 % when tasks share batches.")
    assert lead(results)[-1] == "When the samples of all tasks share batches, mingle leads with 84.8 %."


def test_a_tie_and_a_gap_within_chance_are_said(results):
    only(results, "opcm", "mingle", acc=results["rows"][5]["mean"]["acc"] + 0.0001)
    assert "mingle, level with opcm" in lead(results)[0]
    assert "within the sampling error" in lead(results)[1]


def test_nothing_merged(results):
    only(results, "base alone", "individual models")
    assert headline(results) == "Eight checkpoints, and no merged model to compare in these results."
    assert lead(results) == ["The base alone scores 32.8 %, each task’s own model 93.0 %."]


def test_bounds_that_failed_are_left_out(results):
    results["bounds"]["base"] = None
    assert lead(results)[-2].startswith("Each task’s own model scores 93.0 % on average.")
    results["bounds"]["individual"] = None
    assert not any("own model" in sentence for sentence in lead(results))


def test_settings_of_one_method_are_no_merging_methods():
    assert lead(sweep((42,), tasks=2, layers=6))[0].startswith("Best of 15 settings: ")


def test_a_pivot_is_ranked_by_its_corrupted_columns():
    found = readable(pivot(tasks=2, layers=6))
    assert headline(found).startswith("Two checkpoints, one model: ")
    assert " % mean accuracy under corruption over 3 orders, " in headline(found)
    assert lead(found)[0].startswith("Best of 3 merging methods: mingle, ahead of OPCM (")
    assert lead(found)[-1].endswith("on clean images.")


def test_a_table_where_everything_failed_still_has_a_headline():
    found = methods((42, 43), tasks=2, layers=6)
    found["rows"] = [made.fail(row, (42, 43), "no") for row in found["rows"]]
    assert headline(found) == "Two checkpoints, and no merged model to compare in these results."


def test_sampling_error():
    row = {"cells": [{"status": "done", "matrix": [[0.5], [0.5, 0.5]]}]}
    assert sampling_error(row, 100) == pytest.approx(0.05 / 2**0.5)
