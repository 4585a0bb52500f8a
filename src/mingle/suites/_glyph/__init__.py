"""The glyph suites from their sources: fetch, render, augment, fine-tune, package.

Only ``mingle suite build`` comes here; a suite that is built needs none of it. ``tasks.yaml`` fixes the
classes of all twenty tasks, where their pictures come from and the sides of the splits.
"""
