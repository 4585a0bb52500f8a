"""Runs cases: one damaged file each, read as a user would, under watch."""

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mingle.errors import MingleError

from .targets import Target

TEMPORARY = str(Path(tempfile.gettempdir()) / tempfile.gettempprefix())
"""What names of temporary files begin with."""

SECONDS = 20
MEGABYTES = 400
"""What reading a microscopic file may take at most."""

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
NETWORK = ("socket.connect", "socket.getaddrinfo")


class Hang(BaseException):
    """Reading took too long."""


class Watch:
    """Notes what a reader must never do: start programs, unpickle, talk to the network, write elsewhere."""

    def __init__(self):
        self.inside, self.seen = None, []
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.inside is None:
            return
        if event in FORBIDDEN or event in NETWORK:
            self.seen.append(f"{event} {arguments[:2]}")
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"):
            path = str(arguments[0])
            if not path.startswith((self.inside, os.devnull, TEMPORARY)):
                self.seen.append(f"writes {path}")

    @contextmanager
    def over(self, root):
        self.inside, self.seen = str(root), []
        try:
            yield
        finally:
            self.inside = None


@dataclass
class Finding:
    target: str
    number: int
    file: str
    data: bytes
    why: str

    @property
    def kind(self):
        """What is the same about findings that have one cause."""
        return self.why.strip().splitlines()[-1][:70], "".join(self.why.strip().splitlines()[-3:-1])[-160:]


@dataclass
class Campaign:
    """``seed`` and the number of a case give its file."""

    targets: dict[str, Target]
    root: Path
    seed: int = 0
    watch: Watch = field(default_factory=Watch)
    refused: int = 0

    def __post_init__(self):
        self.folders, self.valid = {}, {}
        for name, target in self.targets.items():
            folder = self.root / name.replace(" ", "-")
            folder.mkdir(parents=True)
            target.write(folder)
            self.folders[name] = folder
            self.valid[name] = {file: (folder / file).read_bytes() for file in target.damage}
            if why := self.read(name):
                raise AssertionError(f"{name}: valid files are refused: {why}")
        self.names = list(self.targets)
        self.weights = [target.weight for target in self.targets.values()]

    def case(self, number):
        """The target, the file, and what it holds."""
        rng = random.Random(f"{self.seed}-{number}")
        [name] = rng.choices(self.names, self.weights)
        file = rng.choice(sorted(self.targets[name].damage))
        return name, file, self.targets[name].damage[file](rng, self.valid[name][file])

    def run(self, numbers) -> Iterator[Finding]:
        for number in numbers:
            name, file, data = self.case(number)
            if why := self.attack(name, file, data):
                yield Finding(name, number, file, data, why)

    def attack(self, name, file, data):
        """None where the reader copes with the file, else what it did."""
        path = self.folders[name] / file
        path.write_bytes(data)
        try:
            found = self.read(name)
        finally:
            path.write_bytes(self.valid[name][file])
            for made in self.folders[name].glob("made-*"):
                shutil.rmtree(made)
        if found == "refused":
            self.refused += 1
            return None
        return found

    def read(self, name):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = None
        with warnings.catch_warnings(), self.watch.over(self.root), _alarm():
            warnings.simplefilter("ignore")
            try:
                self.targets[name].read(self.folders[name])
            except MingleError as error:
                found = "refused" if str(error).strip() else "an empty message"
            except KeyboardInterrupt:
                raise
            except BaseException:  # a panic of foreign code is no Exception
                found = traceback.format_exc()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > MEGABYTES:
            return f"memory: grew by more than {MEGABYTES} MB"
        return "\n".join(self.watch.seen) or found


@contextmanager
def _alarm():
    def stop(*_):
        raise Hang(f"took more than {SECONDS} s of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def timed(campaign, numbers, say=print, every=5000):
    """Runs the cases, telling how far it is; findings by kind, with the first of each."""
    kinds, started = {}, time.perf_counter()
    for number in range(0, len(numbers), every):
        part = numbers[number : number + every]
        for finding in campaign.run(part):
            same = kinds.setdefault((finding.target, *finding.kind), [])
            same.append(finding)
            if len(same) == 1:
                place = f"{finding.target}: case {finding.number}, {finding.file}"
                say(f"\n=== {place}\n{finding.why}", flush=True)
        done, seconds = number + len(part), time.perf_counter() - started
        say(
            f"{done} cases of seed {campaign.seed}: {done / seconds:.0f} per second, "
            f"{campaign.refused} refused, {sum(map(len, kinds.values()))} findings of {len(kinds)} kinds",
            flush=True,
        )
    return kinds
