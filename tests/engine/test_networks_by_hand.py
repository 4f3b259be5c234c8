"""Networks that hook-based peers get wrong, against answers worked out with plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop import rules

EPSILON = 1e-6
BOTH = pytest.mark.parametrize("backend", ["aten", "reference"])


def st(z: Tensor) -> Tensor:
    """The stabilized denominator."""
    return z + EPSILON * torch.where(z >= 0, 1.0, -1.0)


def dense(x: Tensor, w: Tensor, b: Tensor | float, r: Tensor) -> Tensor:
    """Epsilon on a dense layer, rows of samples."""
    return x * ((r / st(x @ w.T + b)) @ w)


def z_plus(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """ZPlus on a dense layer, signed inputs."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    s = r / st(up @ w.clamp(min=0).T + down @ w.clamp(max=0).T + b.clamp(min=0))
    return up * (s @ w.clamp(min=0)) + down * (s @ w.clamp(max=0))


def at(output: Tensor, target: int) -> Tensor:
    """The output where it is explained, 0 elsewhere."""
    start = torch.zeros_like(output)
    start[:, target] = output[:, target]
    return start


def explained(model: nn.Module, method: object, *inputs: Tensor, backend: str = "aten") -> Tensor:
    """The relevance for target 1; the capture must be an export, whose graph serves every batch."""
    explainer = relprop.Explainer(model.eval(), method, backend=backend)
    found = explainer(*inputs, target=1)
    assert explainer.plan.graph.origin == "export" and explainer.plan.graph.symbolic
    assert isinstance(found, Tensor)
    return found


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


class Residual(nn.Module):
    """x + f(x), the sum and the ReLU functional, under a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + F.relu(self.inner(x)))


@BOTH
def test_functional_residual(backend: str) -> None:
    model, x = Residual().double(), torch.randn(3, 5).double()
    a = F.relu(model.inner(x))
    z = x + a
    r_z = dense(z, model.head.weight, model.head.bias, at(model.head(z), 1))
    r_a, r_x = a / st(z) * r_z, x / st(z) * r_z
    expected = r_x + dense(x, model.inner.weight, model.inner.bias, r_a)
    close(explained(model, "lrp_epsilon", x, backend=backend), expected)


class Twice(nn.Module):
    """One dense layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


@BOTH
def test_module_called_twice(backend: str) -> None:
    model, x = Twice().double(), torch.randn(2, 5).double()
    w, b = model.layer.weight, model.layer.bias
    a = (x @ w.T + b).relu()
    r_a = dense(a, w, b, at(model.layer(a), 1))
    close(explained(model, "lrp_epsilon", x, backend=backend), dense(x, w, b, r_a))
    result = relprop.Explainer(model, "lrp_epsilon", layers=["layer", "layer@1"]).explain(
        x, target=1
    )
    close(result.layers["layer"], r_a)
    close(result.layers["layer@1"], at(model(x), 1))


class Functional(nn.Module):
    """Two dense layers with a functional ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


@BOTH
def test_functional_relu_under_flat_and_w_square(backend: str) -> None:
    """No rule but Pass may act at the ReLU: relevance stays where the ReLU is 0."""
    model, x = Functional().double(), torch.randn(2, 4).double()
    start = at(model(x), 1)
    hidden = start.sum(1, keepdim=True) / (6 + EPSILON)
    expected = (6 * hidden / (4 + EPSILON)).expand(2, 4)
    close(explained(model, "lrp_flat", x, backend=backend), expected)
    r = start
    for layer in (model.b, model.a):
        w2, b2 = layer.weight.square(), layer.bias.square()
        r = (r / (w2.sum(1) + b2 + EPSILON)) @ w2
    close(explained(model, "lrp_w_square", x, backend=backend), r)


class Cell(nn.Module):
    """An LSTM written by hand: one dense layer a gate, on [x, h]."""

    def __init__(self, size: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.gates = nn.Linear(size + hidden, 3 * hidden)
        self.candidate = nn.Linear(size + hidden, hidden)
        self.head = nn.Linear(hidden, 2, bias=False)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], 1)
            i, f, o = torch.sigmoid(self.gates(both)).chunk(3, 1)
            c = f * c + i * torch.tanh(self.candidate(both))
            h = o * torch.tanh(c)
        return self.head(h)


@BOTH
def test_lstm_cell_by_hand(backend: str) -> None:
    """Arras et al. 2017: the signal takes all; the sum and the candidate's map under Epsilon."""
    model, x = Cell().double(), torch.randn(2, 4, 4).double()
    h = c = torch.zeros(2, 5).double()
    states = []
    for t in range(4):
        both = torch.cat([x[:, t], h], 1)
        i, f, o = torch.sigmoid(model.gates(both)).chunk(3, 1)
        keep, add = f * c, i * torch.tanh(model.candidate(both))
        c = keep + add
        h = o * torch.tanh(c)
        states.append((both, keep, add, c))
    w, b = model.candidate.weight, model.candidate.bias
    r_h, r_c = dense(h, model.head.weight, 0.0, at(model(x), 1)), torch.zeros(2, 5).double()
    expected = torch.zeros_like(x)
    for t in reversed(range(4)):
        both, keep, add, c = states[t]
        r_c = r_c + r_h
        r_both = dense(both, w, b, add / st(c) * r_c)
        expected[:, t], r_h = r_both[:, :4], r_both[:, 4:]
        r_c = keep / st(c) * r_c
    close(explained(model, "lrp_epsilon", x, backend=backend), expected)


class GatedUnit(nn.Module):
    """A GRU written by hand: dense layers of x and of h apart, 1 - z a gate too."""

    def __init__(self, size: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.from_x, self.from_h = nn.Linear(size, 3 * hidden), nn.Linear(hidden, 3 * hidden)
        self.head = nn.Linear(hidden, 2)
        self.hidden = hidden

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        xr, xz, xn = self.from_x(x).chunk(3, 1)
        hr, hz, hn = self.from_h(h).chunk(3, 1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        gated = r * hn
        n = torch.tanh(xn + gated)
        return (1 - z) * n, z * h, xn, gated

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        for t in range(x.shape[1]):
            new, old, _, _ = self.step(x[:, t], h)
            h = new + old
        return self.head(h)


@BOTH
def test_gru_cell_by_hand(backend: str) -> None:
    model, x, h = GatedUnit().double(), torch.randn(3, 4, 4).double(), torch.randn(3, 5).double()
    states, state = [], h
    for t in range(4):
        states.append((state, *model.step(x[:, t], state)))
        state = states[-1][1] + states[-1][2]
    w_x, w_h = model.from_x.weight[10:], model.from_h.weight[10:]
    b_x, b_h = model.from_x.bias[10:], model.from_h.bias[10:]
    r_h = dense(state, model.head.weight, model.head.bias, at(model(x, h), 1))
    expected = torch.zeros_like(x)
    for t in reversed(range(4)):
        before, new, old, xn, gated = states[t]
        r_n = new / st(new + old) * r_h
        expected[:, t] = dense(x[:, t], w_x, b_x, xn / st(xn + gated) * r_n)
        r_h = old / st(new + old) * r_h
        r_h = r_h + dense(before, w_h, b_h, gated / st(xn + gated) * r_n)
    explainer = relprop.Explainer(model.eval(), "lrp_epsilon", backend=backend)
    found = explainer(x, h, target=1)
    close(found[0], expected)
    close(found[1], r_h)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm, hook": lambda layer: nn.utils.weight_norm(layer),
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm, hook": lambda layer: nn.utils.spectral_norm(layer),
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NORMS)
def test_weights_that_are_computed(name: str) -> None:
    """A sub-graph of parameters alone is a constant of the layer, evaluated at each call."""
    layer = NORMS[name](nn.Linear(5, 3).double())
    model, x = nn.Sequential(layer).eval(), torch.randn(2, 5).double()
    explainer = relprop.Explainer(model, "lrp_epsilon")
    for scale in (1.0, -0.5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        output = model(x)
        zero = torch.zeros(1, 5).double()
        w = (model(torch.eye(5).double()) - model(zero)).T
        close(explainer(x, target=1), dense(x, w, model(zero), at(output, 1)))
    assert [step.node.op for step in explainer.plan.steps.values()] == ["dense_map"]


def _norm(count: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(count).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


def _affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


@BOTH
def test_batch_norm_after_dense_is_folded(backend: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5).double(), _norm(5), nn.ReLU(), nn.Linear(5, 3).double())
    x = torch.randn(3, 4).double()
    first, norm, _, last = model.eval()
    scale, shift = _affine(norm)
    w, b = first.weight * scale[:, None], first.bias * scale + shift
    a = (x @ w.T + b).relu()
    expected = z_plus(x, w, b, z_plus(a, last.weight, last.bias, at(model(x), 1)))
    close(explained(model, "lrp_zplus", x, backend=backend), expected)


@BOTH
def test_batch_norm_before_dense_is_folded(backend: str) -> None:
    model, x = nn.Sequential(_norm(4), nn.Linear(4, 3).double()), torch.randn(3, 4).double()
    norm, layer = model.eval()
    scale, shift = _affine(norm)
    w, b = layer.weight * scale, layer.bias + layer.weight @ shift
    expected = z_plus(x, w, b, at(model(x), 1))
    close(explained(model, "lrp_zplus", x, backend=backend), expected)


class Shared(nn.Module):
    """A dense layer whose output feeds a batch norm and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), _norm(3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return self.norm(z) + z.tanh()


@BOTH
def test_batch_norm_beside_another_consumer_is_an_affine_map(backend: str) -> None:
    model, x = Shared().double(), torch.randn(3, 4).double()
    z = model.layer(x)
    scale, shift = _affine(model.norm)
    normed, bent = z * scale + shift, z.tanh()
    start = at(model(x), 1)
    r_normed, r_bent = normed / st(normed + bent) * start, bent / st(normed + bent) * start
    r_z = z * scale * r_normed / st(normed) + r_bent
    expected = dense(x, model.layer.weight, model.layer.bias, r_z)
    close(explained(model, "lrp_epsilon", x, backend=backend), expected)


@BOTH
def test_batch_norm_around_convolutions(backend: str) -> None:
    """A convolution of full size is a dense layer: 2 channels x 3 pixels."""
    first = nn.Conv1d(2, 3, 1).double()
    middle, last = _norm(3), nn.Conv1d(3, 2, 3).double()
    model = nn.Sequential(_norm(2), first, middle, nn.ReLU(), _norm(3), last, nn.Flatten()).eval()
    x = torch.randn(2, 2, 3).double()
    (s0, t0), (s1, t1), (s2, t2) = map(_affine, (model[0], middle, model[4]))
    w = first.weight[:, :, 0]
    w1 = s1[:, None] * w * s0
    b1 = s1 * (first.bias + w @ t0) + t1
    w2 = last.weight * s2[:, None]
    b2 = last.bias + (last.weight * t2[:, None]).sum((1, 2))
    a = (torch.einsum("oi,bip->bop", w1, x) + b1[:, None]).relu()
    r_a = z_plus(a.flatten(1), w2.flatten(1), b2, at(model(x), 1)).view(2, 3, 3)
    rows = [z_plus(x[:, :, p], w1, b1, r_a[:, :, p]) for p in range(3)]
    close(explained(model, "lrp_zplus", x, backend=backend), torch.stack(rows, 2))


def test_batch_norm_before_a_padded_convolution_stays() -> None:
    model = nn.Sequential(_norm(2), nn.Conv1d(2, 2, 3, padding=1).double(), nn.Flatten()).eval()
    x = torch.randn(2, 2, 3).double()
    explainer = relprop.Explainer(model, "lrp_epsilon")
    found = explainer(x, target=1)
    operations = [step.node.op for step in explainer.plan.steps.values()]
    assert operations == ["diagonal_map", "conv_map", "reshape"]
    scale, shift = _affine(model[0])
    z = x * scale[:, None] + shift[:, None]
    start = at(model(x), 1)
    s = (start / st(model(x))).view(2, 2, 3)
    r_z = z * F.conv_transpose1d(s, model[1].weight, padding=1)
    close(found, x * scale[:, None] * r_z / st(z))


def test_joint_rule_on_pixels_and_state() -> None:
    """ZBox for the pixels, AlphaBeta for the state, lambda 1 where the second sum is empty."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3 + 2, 4), nn.Linear(4, 2, bias=False)
            self.again = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(x.shape[0], 2)
            first = self.layer(torch.cat([x, h], 1)).relu()
            second = self.layer(torch.cat([x, self.again(first)], 1)).relu()
            return self.head(second)

    model, x = Step().double().eval(), torch.rand(3, 3).double() * 2 - 1
    rule = rules.Joint(rules.ZBox(-1, 1), rules.AlphaBeta(2, 1))
    composite = relprop.composites.Composite(rules=[("layer", rule)])
    found = relprop.Explainer(model, composite)(x, target=1)
    reference = relprop.Explainer(model, composite, backend="reference")(x, target=1)
    assert_close(found, reference, rtol=1e-9, atol=1e-12)

    w = model.layer.weight.detach()
    wx, wh = w[:, :3], w[:, 3:]
    up, down = wx.clamp(min=0), wx.clamp(max=0)

    def joint(h: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        plus, minus = h.clamp(min=0), h.clamp(max=0)
        box = x @ wx.T - (-torch.ones_like(x)) @ up.T - torch.ones_like(x) @ down.T
        z1 = box + plus @ wh.clamp(min=0).T + minus @ wh.clamp(max=0).T
        z2 = plus @ wh.clamp(max=0).T + minus @ wh.clamp(min=0).T
        lone = z2 == 0
        s1, s2 = torch.where(lone, 1.0, 2.0) * r / st(z1), -1.0 * r / st(z2)
        r_x = x * (s1 @ wx) + s1 @ up - s1 @ down
        r_h = plus * (s1 @ wh.clamp(min=0)) + minus * (s1 @ wh.clamp(max=0))
        r_h = r_h + plus * (s2 @ wh.clamp(max=0)) + minus * (s2 @ wh.clamp(min=0))
        return r_x, r_h

    zero = torch.zeros(3, 2).double()
    first = model.layer(torch.cat([x, zero], 1)).relu()
    state = model.again(first).detach()
    second = model.layer(torch.cat([x, state], 1)).relu()
    r = dense(second, model.head.weight, 0.0, at(model(x), 1))
    r_x, r_h = joint(state, r)
    r_first = dense(first, model.again.weight, model.again.bias, r_h)
    close(found, r_x + joint(zero, r_first)[0])


@pytest.mark.parametrize("signed", [True, False])
def test_a_joint_state_that_is_an_input_may_have_both_signs(signed: bool) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.head(self.layer(torch.cat([x, state], 1)).relu())

    model, x, state = Step().double().eval(), torch.rand(3, 3).double(), torch.rand(3, 2).double()
    state = state - 0.5 if signed else state
    rule = rules.Joint(rules.ZBox(0, 1), rules.AlphaBeta(2, 1), channels=(0, 3))
    composite = relprop.composites.Composite(rules=[("layer", rule)])
    found = relprop.Explainer(model, composite)(x, state, target=1)
    reference = relprop.Explainer(model, composite, backend="reference")(x, state, target=1)
    assert_close(found, reference, rtol=1e-9, atol=1e-12)


class Assigned(nn.Module):
    """Parts of a hidden value written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        h[:, 0] = 0.5
        h[:, 2:] = x[:, 1:3]
        return self.head(h.relu_())


@BOTH
def test_assignment_in_place(backend: str) -> None:
    model, x = Assigned().double(), torch.randn(3, 4).double()
    w, b = model.layer.weight, model.layer.bias
    h = x @ w.T + b
    a = torch.stack([torch.full((3,), 0.5).double(), h[:, 1], x[:, 1], x[:, 2]], 1).relu()
    r = dense(a, model.head.weight, model.head.bias, at(model(x), 1))
    kept = torch.zeros_like(r)
    kept[:, 1] = r[:, 1]
    expected = dense(x, w, b, kept)
    expected[:, 1:3] += r[:, 2:]
    close(explained(model, "lrp_epsilon", x, backend=backend), expected)
