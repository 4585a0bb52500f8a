"""Task suites, one file each, and samples from wherever a user keeps them."""

from mingle.suites.base_folder import FolderSuite, open_suite
from mingle.suites.base_images import LazyImages, open_image
from mingle.suites.base_samples import RawSamples, load_samples, pick, suite_samples
from mingle.suites.base_suite import SUITES, Suite, locate, suite_part, task_head

__all__ = [
    "SUITES",
    "FolderSuite",
    "LazyImages",
    "RawSamples",
    "Suite",
    "load_samples",
    "locate",
    "open_image",
    "open_suite",
    "pick",
    "suite_part",
    "suite_samples",
    "task_head",
]
