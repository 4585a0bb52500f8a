import pytest

from mingle.report.headline import headline, lead, standard_error


def only(results, *labels, **metrics):
    """The results with some rows alone; ``metrics`` goes to the last of them."""
    results["rows"] = [row for row in results["rows"] if row["label"] in labels]
    results["rows"][-1]["metrics"] |= metrics
    return results


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
        row["metrics"]["acc"] = 0.95 if row["label"] == winner else 0.4
    assert "95.0 % mean accuracy" in headline(results)
    assert lead(results)[0].startswith(f"Best of 6 merging methods: {winner}, ahead of ")
    assert "sampling error" not in " ".join(lead(results))


def test_losing_to_the_base_is_said(results):
    only(results, "base alone", "ties", acc=0.25, mixed_acc=0.25)
    assert headline(results).endswith("less than the 32.8 % of the base alone.")


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
    results["order"] = ["mnist"]
    assert headline(only(results, "mingle", acc=0.9, mixed_acc=0.9, bwt=None, normalised_acc=None)) == (
        "One checkpoint, one model: 90.0 % mean accuracy."
    )


def test_a_score_that_depends_on_the_batch_is_said(results):
    only(results, "mingle", "mingle (reference)", acc=0.95, mixed_acc=0.6)
    assert headline(results).endswith("60.0 % when tasks share batches.")
    assert lead(results)[-1] == "When the samples of all tasks share batches, mingle leads with 85.4 %."


def test_a_tie_and_a_gap_within_chance_are_said(results):
    only(results, "opcm", "mingle", acc=results["rows"][5]["metrics"]["acc"] + 0.0001)
    assert "mingle, level with opcm" in lead(results)[0]
    assert "within the sampling error" in lead(results)[1]


def test_nothing_merged(results):
    only(results, "base alone", "individual models")
    assert headline(results) == "Eight checkpoints, and no merged model in these results."
    assert lead(results) == ["The base alone scores 32.8 %, each task’s own model 93.0 %."]


def test_base_is_read_from_its_row_or_left_out(results):
    del results["base"]
    assert "The base alone scores 32.8 %" in " ".join(lead(results))
    only(results, "mingle")
    assert lead(results)[-1] == "Each task’s own model scores 93.0 % on average."


def test_standard_error():
    assert standard_error({"matrix": [[0.5], [0.5, 0.5]]}, 100) == pytest.approx(0.05 / 2**0.5)
