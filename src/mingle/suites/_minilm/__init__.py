"""The suite minilm8 from its sources: fetch, read and split eight corpora, fine-tune, package.

Only ``mingle suite build minilm8`` comes here; a suite that is built needs none of it.
"""
