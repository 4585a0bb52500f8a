"""A merge that lives in a folder: create it, add checkpoints as they arrive, take the merged model out."""

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch
from torch import Tensor, nn

from mingle.backbones import BACKBONES, Backbone, Head, Samples
from mingle.errors import CheckpointError, ConfigError, RunError, SeedsWarning, translated
from mingle.layers import Placement
from mingle.methods import METHODS, Arrival, Base, Method, SeedPool, State, Step
from mingle.methods.base_method import Progress, silent
from mingle.provenance import versions
from mingle.state.history import History
from mingle.state.run_folder import RunFolder
from mingle.state.stored_step import StoredTensors, append_step, copy_run, portable, read_step, resolved
from mingle.suites import RawSamples, load_samples, locate, suite_part
from mingle.weights import Checkpoint, check_against, check_finite

POOL_LIMIT, SAMPLES_PER_CLASS = 1000, 10
"""Seeds come from at most so many samples of a source, or so many a class if that is more, chosen unread."""

PREDICT_BATCH = 64


class MergeRun(History):
    """One merged model and its history in a folder.

    Only ``add`` and ``undo`` change anything, each in one atomic step. The object always shows the run as
    it was when it was opened or last changed through it.
    """

    def __init__(self, folder: RunFolder, base: str | Path | None = None) -> None:
        super().__init__(folder)
        self._base_source = base
        self._tensors: dict[str, StoredTensors] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        base: str | Path,
        *,
        method: str = "mingle",
        preset: str = "default",
        options: Mapping[str, Any] | None = None,
        backbone: str = "clip",
        seed: int = 42,
    ) -> Self:
        """Starts a run. ``base``: model folder, hub id or ``suite:base``; ``options`` change the preset.

        Raises ConfigError (unknown method, preset, option), CheckpointError (unreadable base), RunError.
        """
        chosen = METHODS.get(method).with_preset(preset, options)
        family = BACKBONES.get(backbone)()
        checkpoint = family.open(locate(base))
        opened = Base(family, checkpoint)
        check_finite(checkpoint)
        opened.check()
        header = {
            "id": uuid4().hex,  # no step of a run that was started alike fits into this one
            "method": method,
            "preset": preset,
            "options": chosen.options.model_dump(),
            "settings": chosen.settings(opened),
            "backbone": backbone,
            "seed": seed,
            "base": {"source": portable(base, Path(path)), "fingerprint": checkpoint.fingerprint},
            "versions": versions(),
        }
        return cls(RunFolder.create(path, header), base)

    @classmethod
    def open(cls, path: str | Path, *, base: str | Path | None = None, check_files: bool = True) -> Self:
        """Opens a run. ``base`` says where the base is now, if it has moved since the run was created.

        ``check_files=False`` opens a damaged run too, to verify it or to undo its last step.

        Raises RunError, RunDamagedError or RunSchemaError; the base is read and checked when it is needed.
        """
        return cls(RunFolder.open(path, check_files=check_files), base)

    @property
    def base_source(self) -> str | Path:
        """Where the base is: as said when the run was opened, or else as stored when it was created."""
        return self._base_source or resolved(self.header["base"]["source"], self.path)

    @cached_property
    def method(self) -> Method[Any]:
        """The run's method with its stored options."""
        method = METHODS.get(self.header["method"])
        return method(method.options_type.parse(self.header["options"], f"{self.path}: stored options"))

    @cached_property
    def backbone(self) -> Backbone:
        """The family of the run's models."""
        return BACKBONES.get(self.header["backbone"])()

    @cached_property
    def base(self) -> Base:
        """The base, checked against the fingerprint of the run. Raises MismatchError, CheckpointError."""
        stored = self.header["base"]
        source = self.base_source
        try:
            checkpoint = self.backbone.open(locate(source))
        except CheckpointError as error:
            raise CheckpointError(
                f"base of {self.path}: {error}; if it has moved, pass base= (--base) with where it is now"
            ) from error
        if checkpoint.fingerprint != stored["fingerprint"]:
            raise CheckpointError(
                f"{source}: not the base of {self.path}: expected fingerprint {stored['fingerprint'][:12]} "
                f"({stored['source']}), found {checkpoint.fingerprint[:12]}; "
                "pass base= (--base) with the base that the run was started from"
            )
        return Base(self.backbone, checkpoint)

    @property
    def state(self) -> State:
        """The state of the method; tensors of a step are read, and checked, when they are asked for."""
        return self._state(len(self.tasks))

    def add(
        self,
        checkpoint: str | Path,
        *,
        name: str | None = None,
        seeds: str | Path | Samples | RawSamples | None = None,
        labels: Tensor | None = None,
        head: Head | Tensor | str | Path | None = None,
        classes: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        replay: object = None,
        progress: Progress = silent,
    ) -> Step:
        """Merges one more checkpoint and commits the step; a failure at any point changes nothing.

        ``checkpoint``: a model, or a LoRA adapter of the base: folder, file, hub id or ``suite:task``.
        ``seeds``: unlabelled samples, or where they are. ``labels`` only for seed selection ``label``;
        ``head`` (class embeddings, or a file of them), or ``classes`` (names, with prompt ``templates``),
        only if the checkpoint brings no head. Warns (SeedsWarning) of seeds that do not look like its task.
        Raises TaskExistsError, MismatchError (lists every mismatch), SeedsError, RunLockedError, RunError.
        """
        task = name or Path(str(checkpoint).partition(":")[2] or checkpoint).name
        # Whatever mode the caller is in: gates are adapted with gradients.
        with self.lock(), torch.inference_mode(False), torch.enable_grad():
            self._folder.check_addition(task)
            opened = self.backbone.open(locate(checkpoint), self.base.checkpoint)
            self.backbone.check_family(opened, self.base.checkpoint)
            check_against(self.base.checkpoint, opened, self.backbone.optional)
            part = suite_part(str(checkpoint))
            if classes is None and templates is not None:
                raise ConfigError(
                    "templates: prompts need class names to fill in; pass classes (--classes) too"
                )
            if classes is not None:
                head = self._head_of_names(head, classes, templates)
            elif head is None and part is not None:
                head = part[0].head(part[1])
            found = self._head(opened, head)
            pool = self._pool(seeds, labels, found)
            arrival = Arrival(task, opened, found, pool, seed=self.header["seed"], replay=replay)
            started = time.perf_counter()
            with translated(RunError, f"{self.path}: task {task!r} could not be merged into what is stored"):
                step = self.method.update(self.state, arrival, progress).steps[-1]
            self._folder = append_step(self._folder, step, opened, started)
        # After the step is in: where warnings are errors, too, nothing is refused.
        if warning := step.report.get("seed_check", {}).get("warning"):
            warnings.warn(warning, SeedsWarning, stacklevel=2)
        return self._step(len(self.tasks) - 1)

    def head(self, task: str) -> Head | None:
        """The class head of a task. Raises UnknownNameError, RunDamagedError."""
        return self._step(self._index(task)).head

    def model(
        self, *, task: str | None = None, steps: int | None = None, placement: Placement | None = None
    ) -> nn.Module:
        """The merged model, of the base's class; ``steps`` gives it as it was after that many tasks.

        A copy of its own: training or changing it does not touch the run. With ``placement`` every tensor is
        read in that precision, then placed. Raises ConfigError for devices that cannot be.
        """
        state = self._state(steps)
        if placement is not None:
            state = replace(state, base=replace(state.base, dtype=placement.dtype or state.base.dtype))
        model = self._model(state, task)
        return copy.deepcopy(model) if placement is None else placement.place(model)

    def copy(self, path: str | Path, *, base: str | None = None, progress: Progress = silent) -> Self:
        """The run in a new folder, without paths of this machine; ``base`` replaces the stored source of it.

        Raises RunError, RunDamagedError.
        """
        source = base or portable(self.base_source, Path(path))
        return type(self)(copy_run(self._folder, Path(path), source, progress))

    @torch.no_grad()
    def predict(
        self, samples: str | Path | Samples, task: str, *, model: nn.Module | None = None
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Class probabilities (N, C) of samples under a task's head, and its class names.

        A row of zeros: the model's answer is no class of the task (models that write text). ``model``: the
        merged model, where it is at hand.

        Samples pass through the model in batches of 64; only with batch gates the result depends on it.
        """
        head = self.head(task)
        if head is None:
            raise CheckpointError(
                f"{self.path}: task {task!r} was added without a class head; nothing to predict with"
            )
        if model is None:
            model = self._model(self.state, task if self.method.needs_task else None)
        device = None if hasattr(model, "hf_device_map") else next(model.parameters()).device
        raw = load_samples(samples).samples
        parts = (raw[i : i + PREDICT_BATCH] for i in range(0, len(raw), PREDICT_BATCH))
        batches = (self.backbone.prepare(part, self.base.checkpoint) for part in parts)
        moved = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
        with translated(RunError, f"{self.path}: task {task!r}: model and head do not work on these samples"):
            features = (self.backbone.features(model, batch) for batch in moved)
            found = torch.cat([self.backbone.probabilities(part, head) for part in features]).cpu()
        return found, head.classes

    def _model(self, state: State, task: str | None) -> nn.Module:
        with translated(RunError, f"{self.path}: what is stored and the base give no model"):
            return self.method.model(state, task)

    def _state(self, steps: int | None) -> State:
        """The state after that many tasks, or all: nothing of later ones is read."""
        places = range(len(self.tasks))[:steps]
        return State(self.base, tuple(self._step(index) for index in places))

    def _step(self, index: int) -> Step:
        # A file is checked once, however often its step is asked for. The chain tells steps apart.
        chain = self._folder.manifest.steps[index].chain
        if chain not in self._tensors:
            self._tensors[chain] = StoredTensors(self._folder, index)
        return read_step(self._folder, index, self._tensors[chain])

    def _head_of_names(self, head: object, classes: Sequence[str], templates: Sequence[str] | None) -> Head:
        if head is not None:
            raise ConfigError("head and classes: expected one of the two, found both")
        return self.backbone.zero_shot_head(self.base.checkpoint, classes, templates)

    def _head(self, opened: Checkpoint, head: Head | Tensor | str | Path | None) -> Head | None:
        if isinstance(head, Head):
            return head
        given = Path(head) if isinstance(head, str) else head
        return self.backbone.head(opened, given, base=self.base.checkpoint)

    def _pool(
        self, seeds: str | Path | Samples | RawSamples | None, labels: Tensor | None, head: Head | None
    ) -> SeedPool | None:
        if seeds is None or not self.method.needs_seeds:
            return None
        wanted = 0 if head is None else SAMPLES_PER_CLASS * len(head.classes)
        limit = None if self.method.needs_labels else max(POOL_LIMIT, wanted)
        raw = load_samples(seeds, scored=self.method.scored_seeds, limit=limit, seed=self.header["seed"])
        batch = self.backbone.prepare(raw.samples, self.base.checkpoint)
        found = raw.labels if labels is None else torch.as_tensor(labels)
        if found is None:
            found = None if head is None else raw.labels_in(head.classes)
        if found is not None and head is not None:
            head.check_labels(found, f"seeds from {raw.source}")
        return SeedPool(batch, found, raw.ids(), raw.source)
