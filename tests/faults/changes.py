"""The changes that have to survive any fault: what they start from and do, what is whole afterwards."""

import hashlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache

import pytest
import torch

import mingle
from mingle.benchmark import Contender, InProcess, Table, read_results, run_table, write_json
from mingle.errors import MingleError
from mingle.export import TARGETS, export_run
from mingle.export import folder as folders
from mingle.export.folder import check_files
from tests.conftest import tensors_of, write_suite, write_zoo
from tests.state.helpers import snapshot

QUICK = {"mingle": {"steps": 1, "rank": 2}, "average": {}}


class World:
    """Models and runs of one to four tasks that all changes start from, made when they are asked for."""

    def __init__(self, root):
        self.root, self.runs, self.exports = root, {}, {}
        self.images = torch.randint(
            0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
        )

    @cached_property
    def zoo(self):
        return write_zoo(self.root / "zoo")

    @cached_property
    def suite(self):
        return str(write_suite(self.root / "suite", self.zoo))

    def create(self, path, method):
        return mingle.MergeRun.create(path, self.zoo / "base", method=method, options=QUICK[method])

    def open(self, path):
        return mingle.MergeRun.open(path, base=self.zoo / "base")

    def add(self, path):
        """The next task."""
        run = self.open(path)
        run.add(self.zoo / f"task{len(run.tasks) + 1}", seeds=self.images)

    def run(self, method, count):
        """A run of some tasks. Read only."""
        if (method, count) not in self.runs:
            path = self.root / f"{method}{count}" / "run"
            if count:
                shutil.copytree(self.run(method, count - 1), path)
                self.add(path)
            else:
                path.parent.mkdir()
                self.create(path, method)
            self.runs[method, count] = path
        return self.runs[method, count]

    def trace_once(self):
        """Tracing a graph takes seconds and writes nothing: it is done once, writing it every time."""
        if not hasattr(torch.onnx.export, "cache_info"):
            trace = torch.onnx.export
            traced = lru_cache(maxsize=1)(lambda outputs: trace(*self.asked[0], **self.asked[1]))

            def export(*given, **options):
                self.asked = given, options
                return traced(tuple(options["output_names"]))

            export.cache_info = traced.cache_info
            torch.onnx.export = export


class Change(ABC):
    """``meaning`` is the same after every success, ``bytes`` of a state changes when anything does."""

    watched = ()
    """Functions by module and name that are points of failure too."""

    def __init__(self, world):
        self.world = world

    @abstractmethod
    def prepare(self, folder):
        """Puts the state before the change into a new folder."""

    @abstractmethod
    def act(self, folder):
        """The change."""

    @abstractmethod
    def look(self, folder):
        """Meaning and bytes of the state in the folder; raises where it is not whole."""

    def proceed(self, folder):
        """The next change; returns the meaning of the state that it has to lead to."""
        self.act(folder)
        return self.after

    @abstractmethod
    def leftovers(self, folder, state):
        """Names of what has no place beside that state after a change that succeeded."""

    @cached_property
    def before(self):
        """Meaning and bytes of the state that ``prepare`` puts there."""
        self.prepare(self.world.root / f"before-{self}")
        return self.look(self.world.root / f"before-{self}")

    @cached_property
    def after(self):
        """The meaning after success."""
        folder = self.world.root / f"after-{self}"
        self.prepare(folder)
        self.act(folder)
        return self.look(folder)[0]

    def __str__(self):
        return type(self).__name__.lower()


class RunChange(Change):
    """A change of a run in the folder ``run``."""

    steps = 2

    def __init__(self, world, method):
        super().__init__(world)
        self.method = method

    def prepare(self, folder):
        folder.mkdir()
        shutil.copytree(self.world.run(self.method, self.steps), folder / "run")

    def look(self, folder):
        path = folder / "run"
        if not (path / "mingle.json").exists():
            return None, {}
        run = self.world.open(path)
        assert run.verify() == []
        named = {f"steps/{step.folder}/{file}" for step in run._folder.manifest.steps for file in step.files}
        stored = {name: data for name, data in snapshot(path).items() if name in {*named, "mingle.json"}}
        digest = hashlib.sha256()
        for key, tensor in tensors_of(run.state).items():
            digest.update(" ".join(key).encode() + tensor.numpy().tobytes())
        return (run.tasks, digest.hexdigest()), stored

    def proceed(self, folder):
        self.world.add(folder / "run")
        return self.expected(len(self.world.open(folder / "run").tasks))

    @lru_cache  # noqa: B019 – as long as the change
    def expected(self, count):
        """The meaning of a run of so many tasks that nothing ever interrupted."""
        return self.look(self.world.run(self.method, count).parent)[0]

    def leftovers(self, folder, state):
        return [name for name in snapshot(folder / "run") if name not in state]

    def __str__(self):
        return f"{super().__str__()} {self.method}"


class Create(RunChange):
    """Starting a run."""

    def prepare(self, folder):
        folder.mkdir()

    def act(self, folder):
        self.world.create(folder / "run", self.method)

    def proceed(self, folder):
        if not (folder / "run" / "mingle.json").exists():
            self.act(folder)
        return super().proceed(folder)


class Add(RunChange):
    """Merging a third checkpoint, from opening the run to the last sync."""

    def act(self, folder):
        self.world.add(folder / "run")


class Undo(RunChange):
    """Dropping the newest step."""

    def act(self, folder):
        self.world.open(folder / "run").undo()


class Export(Change):
    """A run in another form, in a new folder or (``force``) in the place of an earlier export."""

    watched = ((folders, "exchange"),)

    def __init__(self, world, target, force):
        super().__init__(world)
        self.target, self.force = target, force
        self.method = "average" if target == "merged" else "mingle"

    def prepare(self, folder):
        folder.mkdir()
        shutil.copytree(self.world.run(self.method, 2), folder / "run")
        if self.target == "onnx":
            self.world.trace_once()
        if self.force:
            export_run(self.world.open(self.world.run("average", 1)), "merged", folder / "out")

    def act(self, folder):
        options = {"with_base": True} if self.target == "hf" else {}
        export_run(
            self.world.open(folder / "run"), self.target, folder / "out", options=options, force=self.force
        )

    def look(self, folder):
        run, out = self.world.open(folder / "run"), folder / "out"
        assert run.verify() == []
        if not out.exists():
            return None, {"run": run.fingerprint}
        content = check_files(out)
        if content["target"] == "hf":
            mingle.from_pretrained(out).model  # noqa: B018 – opens
        return (content["target"], sorted(content["files"])), {"run": run.fingerprint, **snapshot(out)}

    def proceed(self, folder):
        if not self.force and (folder / "out").exists():
            shutil.rmtree(folder / "out")
        return super().proceed(folder)

    def leftovers(self, folder, state):
        return [path.name for path in folder.iterdir() if path.name not in ("run", "out")]

    def __str__(self):
        return f"export {self.target}{' --force' if self.force else ''}"


class Cell(Change):
    """A cell of a benchmark: merged, scored and stored, beside two that are there."""

    row = Contender("average", "average")

    def table(self, folder, rows):
        results = run_table(
            Table("Quick", rows, ("acc",)), self.world.suite, InProcess(), folder, orders=(42,), samples=8
        )
        failed = [cell for row in results["rows"] for cell in row["cells"] if cell["status"] != "done"]
        if failed:
            raise MingleError(failed[0]["reason"])
        return results

    @cached_property
    def template(self):
        folder = self.world.root / "bench"
        self.table(folder, (self.row,))
        return folder

    def prepare(self, folder):
        shutil.copytree(self.template, folder)
        key = sorted((folder / "cells").iterdir())[0]
        key.unlink()
        # What a killed cell leaves in the folder for temporary files is not the benchmark's.
        (folder / "tmp").mkdir()

    def act(self, folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
            self.table(folder, (self.row,))

    def look(self, folder):
        results = self.done(folder)
        return sorted(results), results

    def done(self, folder):
        """Finished cells by name, as the store reads them."""
        found = {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}
        return {name: data for name, data in found.items() if b'"status": "done"' in data}

    def leftovers(self, folder, state):
        return []


class Results(Cell):
    """The results file of a benchmark in the place of an earlier one."""

    @cached_property
    def value(self):
        return self.table(self.template, (self.row,))

    def prepare(self, folder):
        folder.mkdir()
        write_json({**self.value, "suite": None}, folder / "results.json")

    def act(self, folder):
        write_json(self.value, folder / "results.json")

    def look(self, folder):
        return read_results(folder / "results.json")["suite"], snapshot(folder)["results.json"]


def changes(world):
    """Every change by its name."""
    found = [kind(world, method) for method in QUICK for kind in (Create, Add, Undo)]
    found += [Export(world, target, force) for target in TARGETS.names() for force in (False, True)]
    return {str(change): change for change in (*found, Cell(world), Results(world))}
