"""Test, seed and training texts of a task: cut to what the model reads, no text in two of them."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mingle.errors import ConfigError
from mingle.suites._build.draws import SEED
from mingle.suites._build.folder import WorkFolder
from mingle.suites._minilm.recipe import LENGTH, TextTask
from mingle.suites._minilm.sources import Corpus, Labelled

TESTS, SEEDS, TRAIN = 1000, 200, 8000
"""At most so many texts of each part."""

HELD_SHARE = 0.3
"""Of a corpus without a split of its own."""

SEED_SHARE = 0.25
"""Of the held-out side, where it is small."""

CHARACTERS = 4000
"""More than the first tokens ever have; sparing the tokenizer the rest of long texts."""

PARTS = ("test", "seeds", "train")


def fingerprint(text: str) -> str:
    """The same for texts that differ in case, punctuation or spacing alone."""
    normal = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    return hashlib.sha256(normal.encode()).hexdigest()


def cut(texts: list[str], tokenizer: Any) -> list[str]:  # noqa: ANN401 – a tokenizer of tokenizers
    """Texts of at most ``LENGTH`` tokens, first and last token included, with single spaces."""
    plain = [" ".join(text[:CHARACTERS].split()) for text in texts]
    encoded = tokenizer.encode_batch(plain, add_special_tokens=False)
    ends = [code.offsets[: LENGTH - 2][-1][1] if code.offsets else 0 for code in encoded]
    return [text[:end] for text, end in zip(plain, ends, strict=True)]


def split(corpus: Corpus, task: TextTask, tokenizer: Any) -> dict[str, Labelled]:  # noqa: ANN401
    """The three parts of a task's texts. A text that occurs again, also with another class, is left out.

    Test and seed texts come from the corpus's own test side, or else from a seeded share of all texts.
    """
    rng = np.random.default_rng([SEED, 21, task.number])
    train, held = (_shuffled(side, rng) for side in (corpus.train, corpus.held))
    if not held:
        place = int(len(train) * HELD_SHARE)
        held, train = train[:place], train[place:]
    known: set[str] = set()
    held, train = (_distinct(side, known, tokenizer) for side in (held, train))
    classes = {label for _, label in train}
    held = [row for row in held if row[1] in classes]
    seeds = min(SEEDS, int(len(held) * SEED_SHARE))
    parts = {"seeds": held[:seeds], "test": held[seeds : seeds + TESTS], "train": train[:TRAIN]}
    if not all(parts.values()):
        raise ConfigError(f"task {task.name!r}: too few texts for a test, seeds and training")
    return parts


def _shuffled(rows: Labelled, rng: np.random.Generator) -> Labelled:
    return [rows[place] for place in rng.permutation(len(rows))]


def _distinct(rows: Labelled, known: set[str], tokenizer: Any) -> Labelled:  # noqa: ANN401
    """The rows, cut, without empty texts and without those whose fingerprint is known; adds the new ones."""
    kept = []
    for text, (_, label) in zip(cut([text for text, _ in rows], tokenizer), rows, strict=True):
        mark = fingerprint(text)
        if mark not in known and mark != fingerprint(""):
            known.add(mark)
            kept.append((text, label))
    return kept


def write_parts(parts: dict[str, Labelled], task: TextTask, place: WorkFolder) -> None:
    """A file of class counts and one per part, the training texts last; labels are places in the former."""
    classes = sorted({label for _, label in parts["train"]})
    place.classes(task.name).parent.mkdir(parents=True, exist_ok=True)
    write_counts(parts, place.classes(task.name))
    for part in PARTS:
        lines = [
            json.dumps({"text": text} | ({} if part == "seeds" else {"label": classes.index(label)}))
            for text, label in parts[part]
        ]
        file = place.texts(task.name, part)
        partial = file.with_suffix(".partial")
        partial.write_text("\n".join(lines) + "\n", "utf-8")
        partial.replace(file)


def write_counts(parts: dict[str, Labelled], file: Path) -> None:
    """Names of the classes in their order, with the number of texts that each has in every part."""
    counts = {part: Counter(label for _, label in parts[part]) for part in PARTS}
    names = sorted(counts["train"])
    rows = [{"class": name} | {part: counts[part][name] for part in PARTS} for name in names]
    file.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def class_names(task: TextTask, place: WorkFolder) -> tuple[str, ...]:
    """The names of a task's classes in the order of their labels."""
    return tuple(row["class"] for row in json.loads(place.classes(task.name).read_text("utf-8")))
