"""The forms a run can be exported to: one file each."""
