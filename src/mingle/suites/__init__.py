"""Task suites, one file each, and samples from wherever a user keeps them."""

from mingle.suites.base_samples import RawSamples, load_samples, open_image, suite_samples
from mingle.suites.base_suite import SUITES, FolderSuite, locate, open_suite, suite_part

__all__ = [
    "SUITES",
    "FolderSuite",
    "RawSamples",
    "load_samples",
    "locate",
    "open_image",
    "open_suite",
    "suite_part",
    "suite_samples",
]
