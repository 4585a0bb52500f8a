"""The same bits in another process; with other batches and threads the same but for rounding."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mingle
from mingle.methods import METHODS
from mingle.state import merge_run

FILES = {
    ("mingle", "default"): ("experts", "head", "router"),
    ("mingle", "learned"): ("experts", "gates", "head", "subspace"),
    ("nufilt", "default"): ("head", "weights"),
    ("ties", "default"): ("head", "weights"),
    ("adamerging", "default"): ("head", "weights"),
}
"""Of every step, by method and preset."""

QUICK = {"steps": 3, "rank": 4}


def merge(root, folder, method, preset="default"):
    """Two tasks of the tiny zoo; the images are drawn here, so that nothing comes from outside."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8)
    known = METHODS.get(method).options_type.model_fields
    options = {key: value for key, value in QUICK.items() if key in known}
    run = mingle.MergeRun.create(folder, root / "base", method=method, preset=preset, options=options)
    for task in ("task1", "task2"):
        run.add(root / task, seeds=images)
    return run


def hashes(root, folder):
    """sha256 of every tensor file of a run of every method and preset."""
    found = {}
    for method, preset in FILES:
        run = merge(root, folder / method / preset, method, preset)
        for file in sorted(run.path.rglob("*.safetensors")):
            key = file.relative_to(folder).as_posix()
            found[key] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def test_another_process_gives_the_same_bits(zoo, tmp_path):
    """With other string hashes, another working directory, and random numbers drawn before."""
    repository = Path(__file__).parents[2]
    program = (
        "import json, sys, random; from pathlib import Path; import torch; torch.set_num_threads(1);"
        "torch.manual_seed(9); random.seed(9); from tests.numerics.test_determinism import hashes;"
        "print(json.dumps(hashes(*map(Path, sys.argv[1:]))))"
    )
    paths = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, zoo, tmp_path / "theirs"],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = hashes(zoo, tmp_path / "ours")
    assert ours.keys() == {
        f"{method}/{preset}/steps/{number:04}-task{number}/{stem}.safetensors"
        for (method, preset), stems in FILES.items()
        for number in (1, 2)
        for stem in stems
    }
    assert ours == theirs
    assert len(set(ours.values())) > len(FILES)


@pytest.fixture(scope="module", params=["default", "learned"])
def run(request, zoo, tmp_path_factory):
    return merge(zoo, tmp_path_factory.mktemp("run") / "run", "mingle", request.param)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_batch_size_of_predictions_changes_rounding_only(run, images, monkeypatch, size):
    expected, _ = run.predict(images, "task1")
    monkeypatch.setattr(merge_run, "PREDICT_BATCH", size)
    found, _ = run.predict(images, "task1")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.std() > 1e-3


def test_a_picture_is_prepared_alike_alone_and_among_others(base):
    """To the last bit, whatever the sizes of the others."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((16, 16), (40, 23), (9, 30))
    pixels = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in sizes]
    pictures = [Image.fromarray(array.numpy()) for array in pixels]
    together = base.backbone.prepare(pictures, base.checkpoint)["pixel_values"]
    assert together.shape == (3, 3, 16, 16)
    for index, picture in enumerate(pictures):
        alone = base.backbone.prepare([picture], base.checkpoint)["pixel_values"]
        assert torch.equal(alone[0], together[index])


def test_number_of_threads_changes_rounding_only(run, zoo, tmp_path):
    """Sums are split otherwise; what is drawn is the same."""
    try:
        torch.set_num_threads(2)
        other = merge(zoo, tmp_path / "run", "mingle", run.header["preset"])
    finally:
        torch.set_num_threads(1)
    assert other.info("task2")["report"]["seeds"] == run.info("task2")["report"]["seeds"]
    for one, two in zip(run.state.steps, other.state.steps, strict=True):
        stem = "gates" if "gates" in one.tensors else "router"
        gates, theirs = one.tensors[stem], two.tensors[stem]
        for name in gates:
            torch.testing.assert_close(gates[name], theirs[name], atol=1e-5, rtol=1e-3)
