"""A sample of the campaign (``python -m tests.fuzz`` runs all), and every file that was found to do harm."""

import logging
import os
import pickle
import subprocess
from contextlib import suppress

import pytest

from mingle.backbones import read_names
from mingle.cli.console import visible
from mingle.errors import MingleError, SeedsError
from mingle.state import RunFolder
from mingle.suites import load_samples, open_suite
from mingle.weights import open_checkpoint

from .campaign import Campaign, Watch
from .found import FOUND, HARMLESS
from .models import model_targets
from .mutations import STRINGS
from .targets import TARGETS, Target, write_file

SAMPLE, PARTS = 2400, 8


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    logging.disable(logging.CRITICAL)
    # The other families are read by the same code, and the campaign has them.
    targets = TARGETS | model_targets(("clip", "open_clip", "bert", "swinv2"))
    yield Campaign(targets, tmp_path_factory.mktemp("fuzz"), seed=20)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_are_read_or_refused(campaign, part):
    found = list(campaign.run(range(part, SAMPLE, PARTS)))
    assert [f"case {f.number}: {f.target}: {f.file}: {f.why}" for f in found] == []


@pytest.mark.parametrize("what", FOUND)
def test_files_that_did_harm_are_refused(campaign, what):
    target, file, make = FOUND[what]
    before = campaign.refused
    assert campaign.attack(target, file, make(campaign.valid[target][file])) is None
    assert campaign.refused == before + (what not in HARMLESS)


def test_the_campaign_sees_what_it_looks_for(tmp_path):
    """Readers that crash, start programs, unpickle and write elsewhere are all found."""

    watch, elsewhere = Watch(), tmp_path.parent / "elsewhere"
    readers = {
        "crash": (lambda root: 1 / 0, "ZeroDivisionError"),
        "program": (lambda root: subprocess.run(["true"], check=True), "subprocess.Popen"),
        "pickle": (lambda root: pickle.loads(b"cos\ngetcwd\n."), "pickle.find_class"),
        "write": (lambda root: elsewhere.write_text("x"), "writes"),
    }
    for name, (read, said) in readers.items():
        made = Campaign({}, tmp_path / name, watch=watch)
        made.targets[name], made.folders[name] = Target(write_file, {}, read), tmp_path
        assert said in made.read(name)


def test_the_same_seed_gives_the_same_case(campaign):
    assert campaign.case(11) == campaign.case(11)
    assert len({campaign.case(number)[2] for number in range(50)}) > 40


@pytest.mark.parametrize(
    "name", [s for s in STRINGS if s not in ("float32", "null", "__class__", "__reduce__")]
)
def test_tasks_are_called_by_plain_names_only(tmp_path, name):
    run = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(MingleError, match="task name: expected 1 to 100 of the characters"):
        run.append(name, {}, {})
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["run"]


@pytest.mark.parametrize("name", [s for s in STRINGS if s not in ("", ".", "..", "~")])
def test_sources_that_no_path_can_be_are_refused(name):
    for read in (open_checkpoint, load_samples, open_suite):
        if read is open_checkpoint and name.count("/") == 1 and not name.startswith("~"):
            continue  # a hub id
        with pytest.raises(MingleError):
            read(name)


def test_devices_and_pipes_are_not_read(tmp_path):
    """One that never ends, and one that waits for ever."""
    (tmp_path / "model.safetensors.index.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(MingleError, match="expected a file"):
        open_checkpoint(tmp_path)
    with pytest.raises(MingleError, match="expected a file"):
        read_names(tmp_path / "classes.txt")


def test_a_device_in_a_run_is_damage(tmp_path):
    run = RunFolder.create(tmp_path / "run", {}).append("one", {}, {})
    file = run.path / "steps" / "0001-one" / "step.json"
    file.unlink()
    file.symlink_to("/dev/zero")
    assert "expected a file, found none to read" in "".join(run.verify())
    with pytest.raises(MingleError, match="expected a file, found none to read"):
        run.info(0)


@pytest.mark.parametrize("name", [".mingle.json.tmp", ".mingle.lock.json", ".mingle.lock"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    """That someone has put where a file of a run will be written."""
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    run = RunFolder.create(tmp_path / "run", {})
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(mine)
    with suppress(MingleError):
        run.append("one", {}, {})
    assert mine.read_text() == "mine"


def test_many_names_are_read_at_once(tmp_path):
    """Looking every name up in all others took an hour for these."""
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(f"class {number}" for number in range(200_000)))
    assert len(read_names(file)) == 200_000


def test_messages_do_not_steer_the_terminal():
    assert visible("a\x1b[2J\x07\r\nb\u202e") == "a\\x1b[2J\\x07\\r\nb\\u202e"


def test_a_picture_that_would_grow_is_refused(tmp_path, base):
    from PIL import Image

    Image.new("RGB", (1, 30_000)).save(tmp_path / "a.png")
    with pytest.raises(SeedsError, match="sides of similar length, found 1×30000"):
        base.backbone.prepare(load_samples(tmp_path).samples, base.checkpoint)
