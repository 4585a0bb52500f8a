"""Experts in half precision: rounded once, used as they are stored, refused where they do not fit."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from mingle.errors import DivergedError
from mingle.layers import mixtures
from mingle.methods import METHODS
from mingle.state import MergeRun

from ..conftest import write_checkpoint

HALF = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Distance of 1 to the next number: rounding a factor costs half of it, rounding both all of it."""


def build(method="mingle", preset="default", **changes):
    return METHODS.get(method).with_preset(preset, {"steps": 3, "rank": 4, "lr": 1e-2} | changes)


def factors(state, step=0):
    experts = state.steps[step].tensors["experts"]
    return {n[:-2]: (experts[f"{n[:-2]}.B"], experts[n]) for n in experts if n.endswith(".A")}


@pytest.mark.parametrize("stored", HALF)
def test_the_error_is_that_of_rounding_each_factor_once(merge, stored):
    exact, found = merge(build(), ("task1",)), merge(build(stored=stored), ("task1",))
    for name, (B, A) in factors(exact).items():
        low_B, low_A = factors(found)[name]
        assert low_B.dtype == low_A.dtype == getattr(torch, stored)
        assert A.dtype == torch.float32
        error = (low_B.double() @ low_A.double() - B.double() @ A.double()).abs()
        # Numbers near 0 are a fixed step of float16 apart.
        bound = 1.01 * HALF[stored] * (B.double().abs() @ A.double().abs()) + 1e-7
        assert (error <= bound).all()
        assert error.max() > bound.max() / 50


@pytest.mark.parametrize("stored", HALF)
@pytest.mark.parametrize(
    ("method", "preset"),
    [
        ("mingle", "default"),
        ("mingle", "learned"),
        ("mingle_seq", "default"),
        ("oracle", "default"),
        ("nearest_subspace", "default"),
    ],
)
def test_the_model_computes_in_the_precision_of_the_base_with_what_is_stored(merge, method, preset, stored):
    known = METHODS.get(method).options_type.model_fields
    quick = {k: v for k, v in {"steps": 2, "rank": 4}.items() if k in known}
    chosen = METHODS.get(method).with_preset(preset, quick | {"stored": stored})
    state = merge(chosen, ("task1", "task2"))
    model = chosen.model(state, "task1" if chosen.needs_task else None)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    for name, layer in mixtures(model):
        kept = [factors(state, t)[name] for t in (0, 1)]
        assert torch.equal(layer.A, torch.cat([A.float() for _, A in kept]))
        assert torch.equal(layer.B, torch.cat([B.float() for B, _ in kept], dim=1))


def test_static_gates_are_not_rounded(merge):
    state = merge(build(stored="bfloat16", gates="static"), ("task1",))
    gates = state.steps[0].tensors["gates"]
    assert {tensor.dtype for tensor in gates.values()} == {torch.float32}
    assert {float(t) for n, t in gates.items() if n.endswith("bias")} == {float(torch.tensor(0.3))}


def test_half_of_the_bytes(zoo, images, tmp_path):
    sizes = {}
    for stored in ("exact", *HALF):
        run = MergeRun.create(
            tmp_path / stored, zoo / "base", options={"stored": stored, "steps": 1, "rank": 16}
        )
        run.add(zoo / "task1", seeds=images)
        sizes[stored] = (run.path / "steps" / "0001-task1" / "experts.safetensors").stat().st_size
    numbers = 16 * 2 * (4 * (32 + 32) + 2 * (32 + 48))
    assert 0 < sizes["exact"] - 4 * numbers < 8000
    assert 0 < sizes["bfloat16"] - 2 * numbers < 8000
    assert sizes["float16"] == pytest.approx(sizes["bfloat16"], abs=64)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_float16_refuses_what_it_does_not_hold(base, arrive, zoo, tmp_path, scale):
    start, tuned = (load_file(zoo / name / "model.safetensors") for name in ("base", "task1"))
    zero = {n: torch.zeros_like(t) if "fc1.weight" in n else t for n, t in start.items()}
    moved = {n: zero[n] + scale * (tuned[n] - start[n]) for n in start}
    for name, tensors in (("base", zero), ("far", moved)):
        write_checkpoint(tmp_path / name, tensors, dict(base.checkpoint.config), 1)
    own = dataclasses.replace(base, checkpoint=base.backbone.open(tmp_path / "base"))
    arrival = arrive("task1", checkpoint=base.backbone.open(tmp_path / "far"))
    method = build(stored="float16", gates="static", sites="light")
    with pytest.raises(DivergedError, match=r"float16 does not hold the expert's A.*another precision"):
        method.update(method.init(own), arrival)
    method = build(stored="bfloat16", gates="static", sites="light")
    assert factors(method.update(method.init(own), arrival))
