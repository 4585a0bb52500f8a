"""The experiments of the paper: one file each, found by its name."""
