"""Gates of a model that continues a prompt: they read the prompt, and nothing that is written after it.

So the gates of a sample stay what they are while it is written, and a token that is written with a cache,
when layers see the newest token only, is the one that is written without. The means of the pass that reads
the prompt are kept with the cache that this pass fills.

Shapes: N samples; P columns of the prompt; S columns of one pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from mingle.errors import ConfigError
from mingle.layers import PooledInput, mixtures

MEANS = "mingle_prompt_means"
"""What the cache of a merged model carries: means by merged Linear and reader, see PooledInput."""


class PromptReader(nn.Module):
    """A class of transformers whose gates read prompts; mixed into it by `read_prompts`."""

    prompt_columns: int | None = None
    """P while ``generate`` runs."""

    def __call__(self, *args: Any, prompt_mask: Tensor | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """One pass. ``prompt_mask`` (N, P): the prompt's tokens, in the first columns of the pass.

        Without it all that ``attention_mask`` marks is prompt; no token is once the cache holds the prompt.
        Raises ConfigError for a prompt that is read in several passes.
        """
        pools = {name: layer.pool for name, layer in mixtures(self)}
        if not pools:
            return super().__call__(*args, **kwargs)
        given = signature(self.forward).bind_partial(*args, **kwargs).arguments
        columns = self.prompt_columns if prompt_mask is None else prompt_mask.shape[1]
        with _told(pools, given, prompt_mask, columns):
            output = super().__call__(*args, **kwargs)
            cache = getattr(output, "past_key_values", None)
            if cache is not None:
                setattr(cache, MEANS, {name: pool.held for name, pool in pools.items()})
        return output

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """``generate`` of the class: the same tokens with ``use_cache`` and without."""
        texts = (inputs, kwargs.get("inputs_embeds"), kwargs.get("input_ids"))
        # Without any of them the class starts with one token of its own.
        self.prompt_columns = next((text.shape[1] for text in texts if text is not None), 1)
        try:
            whole: Any = super()
            return whole.generate(inputs, *args, **kwargs)
        finally:
            self.prompt_columns = None

    def __reduce__(self) -> Any:  # noqa: ANN401
        """Copies and pickles: the class is made anew."""
        return _blank, (type(self).__mro__[2],), self.__dict__


def read_prompts(model: nn.Module) -> None:
    """Makes the model one of the same class whose gates read prompts, in place."""
    kind: Any = type(model)
    model.__class__ = _reader(kind)


def _blank(kind: Any) -> Any:  # noqa: ANN401 – a class of transformers
    return object.__new__(_reader(kind))


@lru_cache
def _reader(kind: type[Any]) -> type[Any]:
    # Under the name of the class: the library goes by it, and so do saved configurations.
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (PromptReader, kind), names)


@contextmanager
def _told(
    pools: Mapping[str, PooledInput], given: Mapping[str, Any], prompt: Tensor | None, columns: int | None
) -> Iterator[None]:
    """While open, pools know which tokens of the pass count, and what an earlier one has read."""
    cache = given.get("past_key_values")
    seen = 0 if cache is None else int(cache.get_seq_length())
    means = getattr(cache, MEANS, None) if seen else {name: {} for name in pools}
    tokens: Tensor = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    wide = tokens.shape[1]
    if means is None or (columns or 0) > (seen or wide):
        raise ConfigError(
            "the gates of this model read the whole prompt at once: do not read it in chunks, and start "
            "without past_key_values, or with those of its own pass over the whole prompt"
        )
    mask = given.get("attention_mask") if prompt is None else prompt
    if seen or mask is None:
        mask = tokens.new_ones(len(tokens), 0 if seen else wide)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise ConfigError("the gates of this model need attention_mask (N, S); use the default kind of cache")
    mask = mask[:, :columns]
    for name, pool in pools.items():
        pool.mask, pool.held = pad(mask, (0, wide - mask.shape[1])), means[name]
    try:
        yield
    finally:
        for pool in pools.values():
            pool.mask = pool.held = None
