"""What the options mean for a base: the rank, the Linears that get experts, and where routers read."""

import math
from typing import NamedTuple

from mingle.errors import ConfigError
from mingle.layers import LinearGroup
from mingle.methods._mingle_options import (
    REFERENCE_WIDTH,
    ExpertOptions,
    MingleOptions,
    ResolvedOptions,
    RouterOptions,
    bytes_of,
)
from mingle.methods.base_method import Base


class Place(NamedTuple):
    """A module whose input is read, and the Linears that get the gates."""

    reader: str
    linears: tuple[str, ...]


class Stack(NamedTuple):
    """The module that runs numbered blocks, what it calls them, and after how many of them a router reads."""

    name: str
    blocks: str
    depths: tuple[int, ...]

    def block(self, number: int) -> str:
        """The name of a block in the model, the first of them 0."""
        return ".".join(part for part in (self.name, self.blocks, str(number)) if part)


def width_rule(base: Base) -> int:
    """Rank for the base's width d: ``clamp(64·d/768, 16, 64)``."""
    width = base.backbone.width(base.outline)
    return min(max(64 * width // REFERENCE_WIDTH, 16), 64)


def resolve(options: ExpertOptions, base: Base) -> ResolvedOptions:
    """Mingle's options as far as these name them, the rest at its defaults, rank by the width rule.

    Raises UnknownNameError for the sites, ConfigError for MB that do not hold a rank in every Linear.
    """
    chosen = options.model_dump(include=set(ResolvedOptions.model_fields), exclude_none=True)
    resolved = ResolvedOptions.model_validate({"rank": width_rule(base)} | chosen)
    groups = merged_groups(base, resolved)
    if resolved.gates == "analytic":
        _check_router(resolved)
    if isinstance(resolved.budget, str):
        linears = [f"{name}.weight" for group in groups for name in group.linears]
        numbers = sum(sum(base.checkpoint.entries[name].shape) for name in linears)
        least = numbers * (resolved.stored_dtype or base.dtype).itemsize
        if bytes_of(resolved.budget) < least:
            raise ConfigError(
                f"budget: {resolved.budget} is less than one rank in each of {len(linears)} Linears; "
                f"expected at least {math.ceil(least / 1e3) / 1e3:g}MB"
            )
    return resolved


def merged_groups(base: Base, options: MingleOptions) -> list[LinearGroup]:
    """The Linears that get experts, by shared input: those of the sites, but for a router's stem.

    Raises UnknownNameError, and ConfigError for a stem that leaves none.
    """
    groups = base.backbone.groups(base.outline, options.sites)
    if options.gates != "analytic" or options.router_reads != "stem":
        return groups
    stack = stack_of(base, options)
    stem = tuple(f"{stack.block(number)}." for number in range(stack.depths[-1]))
    left = [group for group in groups if not group.linears[0].startswith(stem)]
    if not left:
        raise ConfigError(
            f"router_depths: all Linears of sites {options.sites!r} are among the first {stack.depths[-1]} "
            "blocks, which have no experts with router_reads 'stem'"
        )
    return left


def places(base: Base, options: MingleOptions) -> list[Place]:
    """Where routers in closed form read, and for whom. Raises ConfigError."""
    groups = merged_groups(base, options)
    if options.router_reads == "layer":
        return [Place(group.name, group.linears) for group in groups]
    merged = {name for group in groups for name in group.linears}
    # In the model's order, for what the first Linear of a block reads is the block's own input.
    every = tuple(name for name, _ in base.outline.named_modules() if name in merged)
    if options.reads_base:
        stack = stack_of(base, options)
        stem = options.router_reads == "stem"
        return [Place(stack.block(stack.depths[-1]) if stem else stack.name, every)]
    blocks: dict[str, list[str]] = {}
    for name in every:
        blocks.setdefault(_block(name), []).append(name)
    return [Place(block, tuple(linears)) for block, linears in blocks.items()]


def stack_of(base: Base, options: MingleOptions) -> Stack:
    """The stack of the first Linear of the sites. Raises ConfigError for depths that it has not."""
    first = base.backbone.groups(base.outline, options.sites)[0].linears[0]
    blocks = _block(first).rpartition(".")[0]
    size = len(list(base.outline.get_submodule(blocks).children()))
    # What comes after a stem is what has experts.
    most = size - 1 if options.router_reads == "stem" else size
    depths = options.router_depths or default_depths(options, size)
    if list(depths) != sorted(set(depths)) or not 1 <= depths[0] <= depths[-1] <= most:
        raise ConfigError(
            f"router_depths: expected rising numbers from 1 to {most} ({blocks} has {size} blocks), "
            f"found {depths}"
        )
    stack, _, local = blocks.rpartition(".")
    return Stack(stack, local, tuple(depths))


def default_depths(options: RouterOptions, size: int) -> list[int]:
    """After how many of so many blocks a trunk or a stem is read, where the options do not say it."""
    quarter = max(1, size // 4)
    if options.router_reads == "stem":
        return list(range(1, quarter + 1))
    return sorted({max(1, quarters * size // 4) for quarters in (1, 2, 3)})


def _block(linear: str) -> str:
    """The name of the numbered block that a Linear is part of. Raises ConfigError where it is in none."""
    parts = linear.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    raise ConfigError(f"router_reads: {linear} is part of no numbered block; use 'layer'")


def _check_router(options: MingleOptions) -> None:
    if options.seeds == "teacher" and not options.refine:
        raise ConfigError("seeds: gates in closed form ask no teacher; use 'random' or 'label'")
    if options.vectors == "gated" and not options.reads_base:
        raise ConfigError(
            "vectors: LayerNorms run before what a router reads in their block; use router_reads 'trunk', or "
            "drop the vectors"
        )
