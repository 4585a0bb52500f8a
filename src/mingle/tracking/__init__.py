"""Following merges in an experiment tracker: local files, and only where it is asked for."""

from mingle.tracking.base_tracker import TRACKERS, Tracker, open_tracker, track_evaluation, track_step

__all__ = ["TRACKERS", "Tracker", "open_tracker", "track_evaluation", "track_step"]
