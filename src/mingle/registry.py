"""Plug-ins by name: one file each, found by its file name, imported only when asked for."""

import importlib
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from mingle.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of plug-ins of one kind: file stems of a package, and entry points of other distributions.

    Every plug-in module states what it offers in a constant ``PLUGIN``. Other packages register with an
    entry point, of a group named like the package, that refers to the object itself. Modules
    named ``base_*`` or starting with an underscore hold shared code, not plug-ins.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package

    @cached_property
    def _stems(self) -> frozenset[str]:
        path = importlib.import_module(self.package).__path__
        stems = (module.name for module in iter_modules(path))
        return frozenset(stem for stem in stems if not stem.startswith(("_", "base_")))

    @cached_property
    def _external(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.package):
            if point.name in found or point.name in self._stems:
                raise ConfigError(
                    f"{self.kind} {point.name!r} is registered twice (again by {point.value}); "
                    "uninstall one of the distributions"
                )
            found[point.name] = point
        return found

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._stems | self._external.keys())

    def get(self, name: str) -> T:
        """The plug-in of that name. Raises UnknownNameError with the nearest names."""
        if name in self._stems:
            plugin: T = importlib.import_module(f"{self.package}.{name}").PLUGIN
            return plugin
        if name in self._external:
            loaded: T = self._external[name].load()
            return loaded
        raise UnknownNameError(self.kind, name, self.names())
