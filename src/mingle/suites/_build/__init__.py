"""What all suites that are built on a user's machine share: where things lie, fetching, training, workers.

Only ``mingle suite build`` comes here, but for ``folder``; a suite that is built needs none of it.
"""
