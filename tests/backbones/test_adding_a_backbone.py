"""The file that docs/adding-a-backbone.md shows is all that a family needs."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import mingle.backbones
from mingle.registry import Registry
from mingle.state import MergeRun, merge_run

from .families import TASKS, TEXT, sentences, write_text_classifier

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-backbone.md"


@pytest.fixture
def electra(tmp_path, monkeypatch):
    """The shown file put beside the others, and a tiny model."""
    shown = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S).group(1)
    assert len(shown.splitlines()) <= 50
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "electra.py").write_text(shown)
    monkeypatch.setattr(mingle.backbones, "__path__", [*mingle.backbones.__path__, str(tmp_path / "plugins")])
    monkeypatch.setattr(merge_run, "BACKBONES", Registry("backbone", "mingle.backbones"))
    write_text_classifier(tmp_path / "models", "electra", TEXT | {"embedding_size": 16})
    yield tmp_path / "models"
    sys.modules.pop("mingle.backbones.electra", None)


@torch.no_grad()
def test_the_shown_file_is_a_family(electra, tmp_path):
    backbone = importlib.import_module("mingle.backbones.electra").PLUGIN()
    base = backbone.open(electra / "base")
    theirs = AutoModelForSequenceClassification.from_pretrained(electra / "task1").eval()
    opened = backbone.open(electra / "task1", base)
    batch = backbone.prepare(sentences(1, 4), base)
    features = backbone.features(backbone.build(opened, base), batch)
    logits = backbone.classify(features, backbone.head(opened, base=base))
    assert torch.equal(logits, theirs(**batch).logits)
    run = MergeRun.create(
        tmp_path / "run", electra / "base", backbone="electra", options={"steps": 1, "rank": 4}
    )
    for task in TASKS:
        run.add(electra / task, seeds=sentences(2, 15))
    found, classes = MergeRun.open(tmp_path / "run").predict(sentences(3, 4), "task1")
    assert classes == ("class0", "class1", "class2")
    torch.testing.assert_close(found.sum(1), torch.ones(4))
