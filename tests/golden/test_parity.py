"""Numbers computed by the authors' public implementation (float64, commit 928ed62) agree to 1e-9."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mingle.adaptation import kl_divergence, soft_cross_entropy
from mingle.layers import Gate, LowRankExpert, MixtureLinear
from mingle.subspace import (
    Factors,
    NullSpaceProjector,
    SecondMoment,
    effective_rank,
    extend_basis,
    project_delta,
    truncated_svd,
)

DATA = Path(__file__).parent / "data"
TOLERANCE = {"atol": 1e-9, "rtol": 1e-9}


@pytest.mark.parametrize("shape", ["sq", "tall", "wide"])
@pytest.mark.parametrize("previous", ["none", "full", "low"])
def test_expert_construction(shape, previous):
    stored = load_file(DATA / "construct_lora.safetensors")
    case = {k.split(".", 2)[2]: v for k, v in stored.items() if k.startswith(f"{shape}.{previous}.")}
    factors = None
    if "prev" in case:
        U, S, Vh = torch.linalg.svd(case["prev"], full_matrices=False)
        factors = Factors(U, S, Vh.mT)
        assert effective_rank(S) == int(case["effective_rank"])
    projected, used = project_delta(case["W1"] - case["W0"], factors, "block")
    if factors is not None:
        assert used == int(case["effective_rank"])
    U, S, V = truncated_svd(projected, 8)
    torch.testing.assert_close(U @ torch.diag(S) @ V.mT, case["BA"], **TOLERANCE)
    # B holds orthonormal left singular vectors, A carries the singular values.
    torch.testing.assert_close((U.mT @ case["B"]).abs(), torch.eye(8, dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(S, case["A"].norm(dim=1), **TOLERANCE)


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_layer_forward_and_gradients(reduction):
    g = load_file(DATA / "lora_moe_forward.safetensors")
    linear = torch.nn.Linear(64, 80, dtype=torch.float64)
    linear.load_state_dict({"weight": g["W"], "bias": g["b"]})
    layer = MixtureLinear(linear, reduction=reduction)
    layer.extend(LowRankExpert(g[f"A.{i}"], g[f"B.{i}"]) for i in range(3))
    for i in range(3):
        layer.gate.append(g["gate_w"][i], g["gate_b"][i], trainable=i == 2)
    x = g["x"].clone().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, g[f"{reduction}.y"], **TOLERANCE)
    (y * g[f"{reduction}.grad_out"]).sum().backward()
    torch.testing.assert_close(x.grad, g[f"{reduction}.grad_x"], **TOLERANCE)
    torch.testing.assert_close(
        layer.gate.new_weight.grad[None], g[f"{reduction}.grad_gate_w_new"], **TOLERANCE
    )
    torch.testing.assert_close(layer.gate.new_bias.grad[None], g[f"{reduction}.grad_gate_b_new"], **TOLERANCE)
    assert linear.weight.grad is None


def test_pooled_gates():
    g = load_file(DATA / "lora_moe_forward.safetensors")
    gate = Gate(64, dtype=torch.float64)
    for weight, bias in zip(g["gate_w"], g["gate_b"], strict=True):
        gate.append(weight, bias)
    torch.testing.assert_close(gate(g["x"].mean(1)), g["sample.gates"], **TOLERANCE)


@pytest.mark.parametrize("gamma", [1, 2])
def test_gradient_projection(gamma):
    g = load_file(DATA / "project_gradient.safetensors")
    projector = NullSpaceProjector(g[f"gamma{gamma}.U"], beta=0.99, gamma=gamma)
    for i in range(5):
        gradient = g[f"gamma{gamma}.grad.{i}"]
        projector.observe(gradient)
        torch.testing.assert_close(projector.project(gradient), g[f"gamma{gamma}.proj.{i}"], **TOLERANCE)
        torch.testing.assert_close(projector.interference[0], g[f"gamma{gamma}.h.{i}"], **TOLERANCE)


@pytest.mark.parametrize("how", ["qr", "rank_revealing"])
def test_subspace_update(how):
    g = load_file(DATA / "subspace.safetensors")
    basis = torch.zeros(48, 0, dtype=torch.float64)
    for task in ("task0", "task1"):
        moment = SecondMoment(48, augmented=False, dtype=torch.float64)
        for batch in g[f"{task}.features"]:
            moment.add(batch)
        basis = torch.cat([basis, extend_basis(basis, moment.top_directions(3), how)], dim=1)
        torch.testing.assert_close(basis @ basis.mT, g[f"{task}.U"] @ g[f"{task}.U"].mT, **TOLERANCE)
        torch.testing.assert_close(basis.abs(), g[f"{task}.U"].abs(), **TOLERANCE)


@pytest.mark.parametrize("temperature", [1, 2])
def test_distillation_loss(temperature):
    g = load_file(DATA / "kd_loss.safetensors")
    for objective in (soft_cross_entropy, kl_divergence):
        student = g["pred"].clone().requires_grad_()
        value = objective(student, g["soft"], temperature)
        value.backward()
        torch.testing.assert_close(student.grad, g[f"grad_pred_T{temperature}"], **TOLERANCE)
        if objective is soft_cross_entropy:
            torch.testing.assert_close(value.detach()[None], g[f"loss_T{temperature}"], **TOLERANCE)
