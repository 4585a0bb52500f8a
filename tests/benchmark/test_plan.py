"""Orders, rows and keys: what is computed, and when two cells are the same."""

import dataclasses
import hashlib
import json
from importlib.metadata import version

import pytest

from mingle.benchmark import (
    ORDERS,
    TABLES,
    Cell,
    Contender,
    Corruption,
    SeedVariation,
    Table,
    parse_orders,
    select,
    task_order,
)
from mingle.benchmark.plan import check
from mingle.errors import ConfigError, UnknownNameError
from mingle.methods import METHODS

CELL = Cell("glyph8", "f" * 64, ("a", "b"), 42, "mingle", "default", {"steps": 50})


def test_the_first_order_of_the_paper():
    assert task_order("12345678", 42) == tuple("45783612")
    assert ORDERS == (42, 43, 44, 45, 46, 47, 48, 49, 50, 51)


def test_orders_are_permutations_that_differ():
    orders = {task_order("abcdefgh", seed) for seed in ORDERS}
    assert len(orders) == 10
    assert all(sorted(order) == list("abcdefgh") for order in orders)


@pytest.mark.parametrize(
    ("text", "seeds"), [("42-45", (42, 43, 44, 45)), ("42", (42,)), ("44, 42,50-51", (44, 42, 50, 51))]
)
def test_orders_by_ranges_and_lists(text, seeds):
    assert parse_orders(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "42-", "-42", "42,42", "45-42", "42;43"])
def test_odd_orders_are_refused(text):
    with pytest.raises(ConfigError, match="orders: expected"):
        parse_orders(text)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "e" * 64},
        {"tasks": ("b", "a")},
        {"seed": 43},
        {"method": "average"},
        {"options": {"steps": 51}},
        {"samples": 10},
        {"corruption": Corruption("contrast", 3)},
        {"variation": SeedVariation("wrong", 0.5)},
        {"threads": 2},
    ],
)
def test_a_key_changes_with_everything_that_a_number_depends_on(change):
    assert dataclasses.replace(CELL, **change).key != CELL.key


def test_keys_without_a_variation_are_those_of_earlier_results():
    parts = [version("mingle-merge"), "f" * 64, ("a", "b"), 42, "mingle", {"steps": 50}, None, None, 1]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert digest[:24] == CELL.key


def test_a_key_does_not_change_with_names_of_the_same_thing():
    assert dataclasses.replace(CELL, preset="other").key == CELL.key
    assert dataclasses.replace(CELL, suite="/elsewhere/glyph8").key == CELL.key
    assert dataclasses.replace(CELL, options=dict(CELL.options)).key == CELL.key


def test_options_of_the_paper_for_many_tasks():
    row = Contender("task arithmetic", "task_arithmetic", many_tasks={"scale": 0.1})
    assert row.build(8).options.scale == 0.3
    assert row.build(14).options.scale == 0.1


def test_tasks_of_a_table():
    known = ("a", "b", "c", "d")
    assert Table("t", ()).tasks(known) == known
    assert Table("t", (), first_tasks=2).tasks(known) == ("a", "b")
    assert Table("t", (), first_tasks=2, prefer=("d", "a")).tasks(known) == ("a", "d")
    assert Table("t", (), first_tasks=2, prefer=("d", "x")).tasks(known) == ("a", "b")


def test_rows_by_label_or_method_and_more_presets():
    rows = TABLES.get("figure3").contenders
    assert [row.label for row in select(rows, ["mingle, released code"])] == ["mingle, released code"]
    assert select(rows, ["mingle"]) == rows[:1]  # a label before a method
    assert select(rows[1:], ["mingle"]) == rows[1:]
    more = select(rows[:1], presets=["light"])
    assert [(row.label, row.preset) for row in more] == [("mingle", "default"), ("mingle (light)", "light")]
    assert select(rows, presets=["paper"]) == rows  # that row is there already
    with pytest.raises(UnknownNameError, match="did you mean"):
        select(rows, ["mingel"])
    with pytest.raises(UnknownNameError, match="did you mean"):
        select(rows, presets=["papr"])


def test_everything_wrong_with_a_table_is_listed_at_once():
    rows = (
        Contender("one", "averag"),
        Contender("two", "mingle", options={"stepz": 3}),
        Contender("two", "average"),
    )
    with pytest.raises(ConfigError) as caught:
        check(rows, 8)
    for part in ("one: unknown method 'averag'", "two: ", "stepz", "two: two rows of that name"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", TABLES.names())
def test_every_table_can_be_run(name):
    table = TABLES.get(name)
    check(table.contenders, 8)
    check(table.contenders, 20)
    assert table.title
    assert len(set(table.columns)) == len(table.columns)
    for key in (*table.curves, *([table.pivot] if table.pivot else ())):
        assert any(key in row.point for row in table.contenders)


def test_table1_has_every_method_that_does_not_train_on_labels():
    present = {row.method for row in TABLES.get("table1").contenders} | {"pretrained", "individual"}
    unlabelled = {n for n in METHODS.names() if not METHODS.get(n).with_preset().needs_labels}
    assert present == unlabelled


def test_a_family_settles_what_neither_row_nor_preset_names():
    row = Contender("mingle", "mingle")
    assert row.under("text").build(8).options.seeds_in_all == 100
    assert row.under("text").build(8).options.lr == 1e-3
    hard = Contender("hard", "mingle", "ablation_hard").under("text").build(8).options
    assert (hard.null_space, hard.lr, hard.batch_size) == ("hard", 1e-3, 8)
    own = Contender("own", "mingle", options={"lr": 0.5, "seeds_in_all": None}).under("text").build(8).options
    assert (own.lr, own.seeds_in_all, own.batch_size) == (0.5, None, 8)
    assert row.under("default") == row
    assert Contender("a", "average").under("text") == Contender("a", "average")
