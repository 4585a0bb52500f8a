"""The loop keeps its promises about what moves and what stays."""

import pytest
import torch
from torch import nn

from mingle.adaptation import GateGroup, adapt, kl_divergence
from mingle.errors import DivergedError
from mingle.layers import Gate, LinearGroup, LowRankExpert, wrap
from mingle.subspace import NullSpaceProjector

STEPS, WIDTH, CLASSES, ROWS = 50, 8, 5, 2


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Student(nn.Module):
    """Two Linears that read the same tokens; class logits from their product, averaged over the tokens."""

    def __init__(self, dtype):
        super().__init__()
        self.a, self.b = (nn.Linear(WIDTH, CLASSES, dtype=dtype) for _ in range(2))
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(draw(seed, *p.shape))

    def forward(self, x):
        return (self.a(x) * self.b(x)).mean(1)


class Setting:
    """A student with one frozen and one new expert per Linear, a teacher's logits, and a protected basis."""

    def __init__(self, augmented, *, dtype=torch.float64, directions=3, protect=True, gamma=0.0):
        model = Student(dtype)
        self.layers = wrap(model, [LinearGroup(("a", "b"))])
        for seed, layer in enumerate(self.layers.values(), start=1):
            layer.extend(
                LowRankExpert(
                    draw(10 * seed + i, 2, WIDTH, dtype=dtype), draw(20 * seed + i, CLASSES, 2, dtype=dtype)
                )
                for i in range(2)
            )
            layer.gate.append(draw(30 * seed, WIDTH), draw(40 * seed))
            layer.gate.append(0.1 * draw(50 * seed, WIDTH), 0.1 * draw(60 * seed), trainable=True)
        x, teacher = draw(7, 20, 4, WIDTH, dtype=dtype), draw(8, 20, CLASSES, dtype=dtype)
        self.loss = lambda index: kl_divergence(model(x[index]), teacher[index], 2.0)
        width = WIDTH + augmented
        self.basis = torch.linalg.qr(draw(9, width, directions)).Q.to(dtype)
        projector = NullSpaceProjector(self.basis, gamma=gamma) if protect else None
        self.gates = [layer.gate for layer in self.layers.values()]
        self.group = GateGroup(self.gates, projector, augmented)
        self.batches = list(torch.arange(20).repeat(20).split(8))[:STEPS]

    def run(self, acts_on, lr=1e-3, **more):
        return adapt([self.group], self.loss, self.batches, lr=lr, acts_on=acts_on, **more)


def drift(setting, before):
    return float(((setting.group.rows() - before) @ setting.basis).abs().max())


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_projected_update_keeps_every_protected_product(augmented, dtype, tolerance):
    setting = Setting(augmented, dtype=dtype)
    before = setting.group.rows()
    assert before.shape == (ROWS, WIDTH + augmented)
    loss = float(setting.loss(torch.arange(20)).detach())
    setting.run("update")
    assert drift(setting, before) < tolerance
    # It does learn: rows move, the loss falls.
    assert (setting.group.rows() - before).abs().max() > 1e-3
    assert float(setting.loss(torch.arange(20)).detach()) < loss


@pytest.mark.parametrize("augmented", [False, True])
def test_projected_gradient_drifts_inside_the_protected_span(augmented):
    setting = Setting(augmented)
    before = setting.group.rows()
    setting.run("gradient")
    assert drift(setting, before) > 1e-4
    # A sizeable share of the whole move: Adam undoes the projection.
    moved = setting.group.rows() - before
    assert (moved @ setting.basis).norm() > 0.05 * moved.norm()


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
def test_without_protection_it_is_plain_adam(acts_on):
    setting, plain = Setting(True, protect=False), Setting(True, protect=False)
    losses = setting.run(acts_on)
    optimizer = torch.optim.Adam(plain.group.parameters(), lr=1e-3)
    expected = []
    for batch in plain.batches:
        optimizer.zero_grad()
        value = plain.loss(batch)
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert losses == expected
    assert torch.equal(setting.group.rows(), plain.group.rows())


def adam_by_hand(gradients_of, rows, basis, *, lr, steps, gamma, beta, acts_on):
    """Adam written out (β 0.9, 0.999, ε 1e-8), the projector applied by its formula."""
    m = v = S = 0.0
    for t in range(1, steps + 1):
        G = gradients_of(rows, t - 1)
        S = beta * S + (1 - beta) * (G @ basis).abs() / G.norm(dim=1, keepdim=True)
        weight = torch.exp(-gamma * S)
        if acts_on == "gradient":
            G = G - ((G @ basis) * weight) @ basis.mT
        m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G**2
        step = -lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        if acts_on == "update":
            step = step - ((step @ basis) * weight) @ basis.mT
        rows = rows + step
    return rows


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 3.0])
def test_every_step_is_adam_with_the_projector_where_it_belongs(acts_on, gamma):
    setting, twin = Setting(True, gamma=gamma), Setting(True, protect=False)

    def gradients_of(rows, step):
        twin.group.write(rows)
        for p in twin.group.parameters():
            p.grad = None
        twin.loss(twin.batches[step]).backward()
        return twin.group.gradient()

    start = setting.group.rows()
    expected = adam_by_hand(
        gradients_of, start, setting.basis, lr=1e-3, steps=STEPS, gamma=gamma, beta=0.99, acts_on=acts_on
    )
    setting.run(acts_on)
    torch.testing.assert_close(setting.group.rows(), expected, atol=1e-10, rtol=0)


def test_free_bias_moves_while_the_weights_are_held():
    setting = Setting(False, directions=WIDTH)
    weights = setting.group.rows()
    biases = torch.stack([gate.new_bias.detach().clone() for gate in setting.gates])
    setting.run("update")
    torch.testing.assert_close(setting.group.rows(), weights, atol=1e-14, rtol=0)
    assert (torch.stack([gate.new_bias.detach() for gate in setting.gates]) - biases).abs().min() > 1e-3


def test_augmented_gates_give_old_inputs_the_same_value():
    """[w; c]·[x; 1] is the gate: inputs inside the protected span keep it to the last digits."""
    setting = Setting(True)
    inputs = (draw(77, 10, 3) @ setting.basis.mT)[:, :-1]
    scale = (draw(77, 10, 3) @ setting.basis.mT)[:, -1:]
    inputs = inputs / scale
    before = [gate(inputs) for gate in setting.gates]
    setting.run("update")
    for gate, values in zip(setting.gates, before, strict=True):
        torch.testing.assert_close(gate(inputs), values, atol=1e-11, rtol=0)


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
def test_frozen_rows_and_experts_keep_their_bits(acts_on):
    setting = Setting(True, dtype=torch.float32)
    frozen = {
        (name, key): tensor.clone()
        for name, layer in setting.layers.items()
        for key, tensor in layer.state_dict().items()
        if "new_" not in key
    }
    assert len(frozen) == 2 * 8
    setting.run(acts_on)
    for (name, key), tensor in frozen.items():
        assert torch.equal(setting.layers[name].state_dict()[key], tensor), (name, key)


def test_groups_are_protected_one_by_one():
    """One group held completely, one free: only the free one moves."""
    held, free = Gate(3, dtype=torch.float64), Gate(3, dtype=torch.float64)
    for gate in (held, free):
        gate.append(draw(1, 3), draw(2), trainable=True)
    projector = NullSpaceProjector(torch.eye(4, dtype=torch.float64), gamma=0.0)
    groups = [GateGroup([free], None, True), GateGroup([held], projector, True)]
    x = draw(3, 5, 3)
    before = groups[1].rows()
    batches = [torch.arange(5)] * 20
    losses = adapt(groups, lambda _: (held(x) + free(x)).square().mean(), batches, lr=0.1, acts_on="update")
    torch.testing.assert_close(groups[1].rows(), before, atol=1e-15, rtol=0)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("augmented", [False, True])
def test_rows_are_copies_and_can_be_written_back(augmented):
    group = Setting(augmented).group
    rows = group.rows()
    kept = rows.clone()
    rows.add_(1)
    assert torch.equal(group.rows(), kept)
    group.write(rows)
    assert torch.equal(group.rows(), rows)
    for gate, row in zip(group.gates, rows, strict=True):
        assert torch.equal(gate.new_weight, row[:WIDTH])
        assert augmented == torch.equal(gate.new_bias, row[-1])


def test_losses_are_reported_step_by_step():
    setting, told = Setting(True), []
    losses = setting.run("update", report=lambda *what: told.append(what))
    assert told == list(enumerate(losses, start=1))
    assert len(losses) == STEPS


def test_no_batches_no_change():
    setting = Setting(True)
    before = setting.group.rows()
    assert adapt([setting.group], setting.loss, [], lr=1.0, acts_on="update") == []
    assert torch.equal(setting.group.rows(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_loss_names_the_step_and_what_to_do(value):
    setting = Setting(True)
    values = iter([1.0, 1.0, value])

    def loss(index):
        return setting.loss(index) * next(values)

    with pytest.raises(DivergedError, match=r"at step 3 of 50, lr 0\.001; use a smaller lr"):
        adapt([setting.group], loss, setting.batches, lr=1e-3, acts_on="update")


def test_diverged_step_after_a_finite_loss_is_noticed():
    """The last step has no further loss to show that it left the finite numbers."""
    setting = Setting(True)

    def loss(index):
        value = setting.loss(index)
        return value + (value - value.detach()) * 1e308 * 1e10

    with pytest.raises(DivergedError, match=r"not finite after 1 steps, lr 0\.001"):
        adapt([setting.group], loss, setting.batches[:1], lr=1e-3, acts_on="update")
