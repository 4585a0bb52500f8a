"""Model families: one file each; it says how to load, which Linears to merge, and how to classify."""

from mingle.backbones._names import read_names
from mingle.backbones.base_backbone import Backbone, Batch, Head, Lesson, Samples, count, split, take
from mingle.registry import Registry

BACKBONES: Registry[type[Backbone]] = Registry("backbone", "mingle.backbones")

__all__ = [
    "BACKBONES",
    "Backbone",
    "Batch",
    "Head",
    "Lesson",
    "Samples",
    "count",
    "read_names",
    "split",
    "take",
]
