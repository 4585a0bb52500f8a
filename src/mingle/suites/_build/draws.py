"""The random numbers that everything is drawn with."""

import numpy as np
import torch

SEED = 20240


def generator(*key: int) -> torch.Generator:
    """A random generator that depends on the project's seed and on ``key`` alone."""
    seed = int(np.random.SeedSequence([SEED, *key]).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def batch_of(step: int, size: int, count: int, *key: int) -> torch.Tensor:
    """Indices (size,) of a step: consecutive parts of endless shuffles of ``count`` samples."""
    first = step * size
    places = range(first, first + size)
    rounds = {place // count for place in places}
    orders = {r: torch.randperm(count, generator=generator(*key, r)) for r in rounds}
    return torch.stack([orders[place // count][place % count] for place in places])
