"""What merged layers are told for the length of one forward pass: padding, samples cut into windows."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from mingle.layers import PooledInput, mixtures

Tell = Callable[[str, PooledInput, Mapping[str, Any]], None]
"""Called with the name of a merged Linear, its pool, and the arguments of the pass by name."""


def during_passes(module: nn.Module, tell: Tell) -> None:
    """Before every forward pass of ``module`` calls ``tell`` for each merged Linear in it, now or later.

    After the pass, also one that failed, pools know nothing again.
    """
    module.register_forward_pre_hook(partial(_before, tell), with_kwargs=True)
    module.register_forward_hook(_after, always_call=True)


def tell_padding(name: str, pool: PooledInput, kwargs: Mapping[str, Any]) -> None:
    """Tokens where ``attention_mask`` (N, S) is 0 do not count."""
    del name
    pool.mask = kwargs.get("attention_mask")


def tell_samples(name: str, pool: PooledInput, kwargs: Mapping[str, Any]) -> None:
    """A layer may see a sample in several rows (windows of a picture); its gate is the sample's."""
    del name
    pictures = kwargs.get("pixel_values")
    pool.samples = None if pictures is None else len(pictures)


def _before(tell: Tell, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # Callers name the arguments, or not.
    given = dict(zip(signature(module.forward).parameters, args, strict=False)) | kwargs
    for name, layer in mixtures(module):
        tell(name, layer.pool, given)


def _after(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
    del args, output
    for _, layer in mixtures(module):
        layer.pool.mask = layer.pool.samples = None
