"""Merging methods: one file each. State goes in, a new state comes out."""

from typing import Any

from mingle.methods.base_method import Arrival, Base, Method, NoOptions, SeedPool, State, Step
from mingle.registry import Registry

METHODS: Registry[type[Method[Any]]] = Registry("method", "mingle.methods")

__all__ = ["METHODS", "Arrival", "Base", "Method", "NoOptions", "SeedPool", "State", "Step"]
