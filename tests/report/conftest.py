import pytest

from mingle.report import render_html
from tests.report.made_tables import EVERY, SMALL, demo


@pytest.fixture
def results():
    """The results of a demo: one order, eight tasks, two bounds and six merges."""
    return demo(layers=6)


@pytest.fixture
def small():
    """The same with two tasks: quick to draw."""
    return demo(**SMALL)


@pytest.fixture(scope="session")
def pages():
    """A small page of every kind, and one with three chapters."""
    found = {name: render_html([make(**SMALL)]) for name, make in EVERY.items()}
    return found | {"several": render_html([demo(**SMALL)] * 2 + [EVERY["pivot"](**SMALL)])}
