"""Models with recurrent layers: cells and hand-written loops, capture, lengths, initial states."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import relprop
from plans import passed, recorded
from relprop.composites import Composite, uniform
from relprop.errors import InputError, PlanningError
from relprop.functional import lstm_relevance
from relprop.rules import AlphaBeta, Epsilon, Gamma, Product, Recurrent

INPUTS, HIDDEN, CLASSES = 3, 5, 4
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Classifier(nn.Module):
    """A recurrent layer and a linear one on its last step, its last state, or every step's mean."""

    def __init__(self, kind: str = "lstm", reads: str = "step", **options: Any) -> None:
        super().__init__()
        self.recurrent = LAYERS[kind](INPUTS, HIDDEN, batch_first=True, **options)
        ways = 2 if self.recurrent.bidirectional else 1
        self.reads = reads
        self.head = nn.Linear((self.recurrent.proj_size or HIDDEN) * ways, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.recurrent(x)
        if self.reads == "step":
            return self.head(out[:, -1])
        if self.reads == "mean":
            return self.head(out.mean(1))
        if self.reads == "chunks":
            first, second = (out * 2).chunk(2, 1)
            return self.head(first[:, -1] + second[:, 0])
        return self.head(state[0][-1] if isinstance(state, tuple) else state[-1])


class CellClassifier(nn.Module):
    """The same network, written with a cell."""

    def __init__(self, other: Classifier, kind: str) -> None:
        super().__init__()
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[kind]
        self.cell, self.head = cell(INPUTS, HIDDEN).double(), other.head
        layer = other.recurrent
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(self.cell, name).data.copy_(getattr(layer, f"{name}_l0"))

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class HandWritten(nn.Module):
    """The same LSTM, its cell written out in plain operations."""

    def __init__(self, other: Classifier) -> None:
        super().__init__()
        layer, self.head = other.recurrent, other.head
        self.gates = nn.Linear(INPUTS + HIDDEN, 4 * HIDDEN).double()
        self.gates.weight.data = torch.cat([layer.weight_ih_l0, layer.weight_hh_l0], 1).data
        self.gates.bias.data = (layer.bias_ih_l0 + layer.bias_hh_l0).data

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)
        for step in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


def classifier(kind: str = "lstm", reads: str = "step", **options: Any) -> Classifier:
    return Classifier(kind, reads, **options).double().eval()


def batch(steps: int = 4, samples: int = 3) -> Tensor:
    return torch.randn(samples, steps, INPUTS, dtype=torch.float64)


def close(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    assert_close(found, expected, rtol=rtol, atol=rtol * expected.abs().max().item())
    assert expected.abs().max() > 0


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_and_cell_agree(kind: str) -> None:
    model, x = classifier(kind), batch()
    found = relprop.explain(model, x, target=1, method=Epsilon(1e-6))
    close(relprop.explain(CellClassifier(model, kind), x, target=1, method=Epsilon(1e-6)), found)


def test_layer_and_hand_written_cell_agree() -> None:
    model, x = classifier(), batch()
    by_hand = HandWritten(model)
    assert_close(by_hand(x), model(x))
    for epsilon in (1e-6, 1e-2):
        found = relprop.explain(model, x, target=2, method=Epsilon(epsilon))
        close(relprop.explain(by_hand, x, target=2, method=Epsilon(epsilon)), found)


@pytest.mark.parametrize("gate", Recurrent.GATES)
def test_cells_take_every_gate_option(gate: str) -> None:
    model, x = classifier(), batch()
    method = Composite([("recurrent", Recurrent(gate, 1e-4, 1, Gamma(0.3)))])
    found = relprop.explain(model, x, target=0, method=method)
    close(relprop.explain(CellClassifier(model, "lstm"), x, target=0, method=method), found)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reads", ["step", "state", "mean"])
def test_engine_equals_the_oracle(kind: str, reads: str) -> None:
    model = classifier(kind, reads, num_layers=2, bidirectional=reads != "state")
    x, target = batch(), torch.tensor([[0, 1], [2, 3], [3, 0]])
    method = uniform(Recurrent(epsilon=1e-4))
    found = relprop.explain(model, x, target=target, method=method)
    assert found.shape == (3, 2, 4, INPUTS)
    close(relprop.explain(model, x, target=target, method=method, backend="reference"), found)
    single = relprop.explain(model, x, target=[1, 3, 0], method=method)
    close(single, found[:, 1])


class Everything(nn.Module):
    """Reads the output, the last states and the last cells; takes initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(INPUTS, HIDDEN, num_layers=2, proj_size=2)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> Tensor:
        out, (h, c) = self.recurrent(x, (h0, c0))
        return self.head(c[-1]) + out.sum((0, 2)).unsqueeze(1) + h.sum((0, 2)).unsqueeze(1)


def test_initial_states_get_the_loops_relevance() -> None:
    model = Everything().double().eval()
    x = batch().transpose(0, 1)
    h0, c0 = torch.randn(2, 3, 2).double(), torch.randn(2, 3, HIDDEN).double()
    method = uniform(Recurrent(epsilon=1e-5, bias_factor=1))
    explainer = relprop.Explainer(model, method, batch_dim=1)
    found = explainer(x, h0, c0, target=1)
    assert [part.shape for part in found] == [x.shape, h0.shape, c0.shape]
    loop = relprop.Explainer(model, method, batch_dim=1, backend="reference")(x, h0, c0, target=1)
    for ours, expected in zip(found, loop, strict=True):
        close(ours, expected)


def test_zero_initial_states_absorb_and_the_report_says_so() -> None:
    model, x = classifier(), batch()
    result = relprop.Explainer(model, Epsilon(1e-6)).explain(x, target=1)
    report = result.conservation()
    assert_close(report.per_sample.sum(0), result.convergence_delta, rtol=1e-9, atol=1e-12)
    assert report.worst is not None and report.worst.operation in ("lstm", "dense_map")


def test_relevance_of_the_layers_output() -> None:
    model, x = classifier(reads="mean"), batch()
    result = relprop.Explainer(model, Epsilon(1e-6), layers="recurrent").explain(x, target=1)
    above = result.layers["recurrent"]
    below = lstm_relevance(x, model.recurrent._flat_weights, above, batch_first=True)
    close(result.relevance, below)


@pytest.mark.parametrize("axis", [0, 1])
def test_batch_on_either_axis(axis: int) -> None:
    class TimeFirst(nn.Module):
        def __init__(self, inner: Classifier) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x.transpose(0, 1))
            return out if axis == 0 else out.transpose(0, 1)

    model, x = classifier(), batch()
    found = relprop.Explainer(TimeFirst(model), Epsilon(1e-6), batch_dim=1)
    expected = relprop.explain(model, x, target=1, method=Epsilon(1e-6))
    close(found(x.transpose(0, 1), target=1), expected.transpose(0, 1))


def test_new_number_of_steps_costs_little() -> None:
    model = Classifier(num_layers=2, bidirectional=True).eval()
    explainer = relprop.Explainer(model, Epsilon(1e-6))
    explainer(torch.randn(3, 4, INPUTS), target=0)
    explainer(torch.randn(3, 6, INPUTS), target=0)
    taken = []
    for steps in (7, 9, 11):
        x = torch.randn(5, steps, INPUTS)
        began = time.perf_counter()
        explainer(x, target=0)
        first = time.perf_counter()
        explainer(x, target=0)
        taken.append((first - began) - (time.perf_counter() - first))
    assert min(taken) < 0.02


@pytest.mark.parametrize("reads", ["step", "mean", "chunks"])
def test_new_number_of_steps_gives_the_right_numbers(reads: str) -> None:
    model = classifier(reads=reads)
    explainer = relprop.Explainer(model, Epsilon(1e-6))
    explainer(batch(4), target=0)
    for steps in (6, 2, 1, 9) if reads != "chunks" else (6,):
        x = batch(steps)
        loop = relprop.Explainer(model, Epsilon(1e-6), backend="reference")
        close(explainer(x, target=0), loop(x, target=0))
        assert_close(explainer.explain(x, target=0).output, model(x).detach())


@pytest.mark.parametrize("reads", ["step", "state", "mean"])
def test_lengths_explain_each_sample_as_if_alone(reads: str) -> None:
    model = classifier("gru", reads, num_layers=2, bidirectional=reads != "state")
    x, target = batch(6, 4), torch.tensor([[0, 1], [2, 3], [3, 0], [1, 1]])
    lengths = [3, 6, 3, 1]
    explainer = relprop.Explainer(model, Epsilon(1e-6), layers=["recurrent"])
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    result = explainer.explain(padded, target=target, lengths=lengths)
    assert result.relevance.shape == (4, 2, 6, INPUTS)
    assert result.conservation().per_sample.shape == (2, 4)
    for row, length in enumerate(lengths):
        own = slice(row, row + 1)
        alone = explainer.explain(x[own, :length], target=target[own])
        close(result.relevance[own, :, :length], alone.relevance)
        assert not result.relevance[own, :, length:].any()
        close(result.output[own], alone.output)
        close(result.convergence_delta[own], alone.convergence_delta, rtol=1e-6)


def test_lengths_take_targets_of_every_form() -> None:
    model, x = classifier(), batch(4, 3)
    explainer = relprop.Explainer(model, Epsilon(1e-6))
    expected = explainer(x, target=[2, 0, 1], lengths=[4, 2, 4])
    for target in (torch.tensor([2, 0, 1]), torch.tensor([2, 0, 1]).numpy()):
        assert torch.equal(explainer(x, target=target, lengths=[4, 2, 4]), expected)
    cells = relprop.Explainer(CellClassifier(model, "lstm"), Epsilon(1e-6))
    close(cells(x, target=[2, 0, 1], lengths=[4, 2, 4]), expected)
    gradient = relprop.Explainer(model, "gradient")(x, target=[2, 0, 1], lengths=[4, 2, 4])
    assert not gradient[1, 2:].any() and gradient[1, :2].any()


def test_refused_lengths() -> None:
    model, x = classifier(), batch(4, 3)
    explainer = relprop.Explainer(model, Epsilon(1e-6))
    with pytest.raises(InputError, match=r"from 0 to 4; expected 1 to 4.*leave out empty"):
        explainer(x, target=0, lengths=[0, 4, 1])
    with pytest.raises(InputError, match=r"shape \[2\]; expected one integer a sample, \[3\]"):
        explainer(x, target=0, lengths=[4, 1])
    with pytest.raises(InputError, match="Linear has no recurrent layer"):
        relprop.Explainer(nn.Linear(3, 2), Epsilon(1e-6))(x[:, 0], target=0, lengths=[1, 1, 1])
    with pytest.raises(InputError, match="sequence length to be larger than 0"):
        explainer(x[:, :0], target=0)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, INPUTS)
        self.inner = Classifier()

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(self.embedding(ids))


def test_tokens_with_lengths() -> None:
    model, ids = Tokens().double().eval(), torch.randint(0, 11, (3, 5))
    explainer = relprop.Explainer(model, Epsilon(1e-6))
    found = explainer(ids, target=1, lengths=[5, 2, 3])
    assert found.shape == ids.shape
    close(found[1:2, :2], explainer(ids[1:2, :2], target=1).to(found))
    assert not found[1, 2:].any()


def test_recurrent_rules_in_composites() -> None:
    model, x = classifier(), batch()
    adapted = Composite([("recurrent", AlphaBeta(2, 1))])
    direct = Composite([("recurrent", Recurrent(rule=AlphaBeta(2, 1)))])
    found = relprop.explain(model, x, target=1, method=adapted)
    close(relprop.explain(model, x, target=1, method=direct), found)
    assert "Recurrent(epsilon=0.01)" in str(plan(model, x, uniform(Epsilon(0.01))))
    with pytest.raises(PlanningError, match="a GRU takes gate='all'"):
        relprop.explain(classifier("gru"), x, target=1, method=uniform(Recurrent("half")))
    with pytest.raises(PlanningError, match="cannot take it"):
        composite = Composite([("recurrent", Product("half"))])
        relprop.explain(model, x, target=1, method=composite)


def plan(model: nn.Module, x: Tensor, method: Any) -> Any:
    return relprop.Explainer(model, method, example_inputs=x).plan


def test_gradient_methods_differentiate_the_layer() -> None:
    model, x = classifier(num_layers=2), batch()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(relprop.explain(model, x, target=1, method="gradient"), expected)
    close(relprop.explain(model, x, target=1, method="guided_backprop"), expected)


def test_dropout_between_layers_needs_eval() -> None:
    model = Classifier(num_layers=2, dropout=0.5).double()
    with pytest.raises(PlanningError, match=r"'recurrent' \(LSTM\) is in training mode"):
        relprop.explain(model, batch(), target=0, method=Epsilon(1e-6))
    relprop.explain(model.eval(), batch(), target=0, method=Epsilon(1e-6))


def test_a_weight_made_from_the_input_is_refused() -> None:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.RNNCell(INPUTS, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            w, own = self.recurrent, x.mean((0, 1)).tile(5).reshape(5, 3)
            state = x.new_zeros(len(x), HIDDEN)
            return torch.rnn_tanh_cell(x[:, 0], state, own, w.weight_hh, w.bias_ih, w.bias_hh)

    with pytest.raises(PlanningError, match="its weight depends on the input"):
        relprop.explain(Hyper().double(), batch(), target=0, method=Epsilon(1e-6))


class Packs(nn.Module):
    """Packs its input by lengths, as models for sequences of several lengths do."""

    def __init__(self, other: Classifier, reads: str) -> None:
        super().__init__()
        self.recurrent, self.head, self.reads = other.recurrent, other.head, reads

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, state = self.recurrent(packed)
        if self.reads == "state":
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return self.head(padded.sum(1))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reads", ["state", "sum"])
def test_packed_sequences(kind: str, reads: str) -> None:
    inner = classifier(kind, num_layers=2, bidirectional=reads == "sum")
    model, x, lengths = Packs(inner, reads).eval(), batch(), torch.tensor([2, 4, 1])
    method = Epsilon(1e-5)
    found = relprop.explain(model, x, lengths, target=1, method=method, inputs=0)
    loop = relprop.explain(
        model, x, lengths, target=1, method=method, inputs=0, backend="reference"
    )
    close(found, loop)
    for row, length in enumerate(lengths.tolist()):
        own = x[row : row + 1, :length], lengths[row : row + 1]
        alone = relprop.explain(model, *own, target=1, method=method, inputs=0)
        close(found[row : row + 1, :length], alone)
        assert not found[row, length:].any()


def test_float32_and_half_precision() -> None:
    model, x = classifier(), batch()
    expected = relprop.explain(model, x, target=1, method=Epsilon(1e-3))
    found = relprop.explain(model.float(), x.float(), target=1, method=Epsilon(1e-3))
    assert found.dtype is torch.float32
    close(found.double(), expected, rtol=1e-3)


class Frames(nn.Module):
    """A convolution on every frame, then an LSTM over the frames: batch and time in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)
        self.inner = nn.GRU(2 * 3 * 3, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps = x.shape[:2]
        maps = torch.relu(self.convolution(x.reshape(batch * steps, 1, 3, 3)))
        return self.head(self.inner(maps.reshape(batch, steps, -1))[0].mean(1))


def test_frames_of_any_number_share_one_capture() -> None:
    model = Frames().double().eval()
    explainer = relprop.Explainer(model, "epsilon_plus")
    loop = relprop.Explainer(model, "epsilon_plus", backend="reference")
    for steps in (4, 7):
        x = torch.randn(2, steps, 1, 3, 3, dtype=torch.float64)
        close(explainer(x, target=1), loop(x, target=1))
    assert len(explainer._planner.plans) == 1


class Cells(nn.Module):
    """The last cells of an LSTM, on packed data or not."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.layer, self.packed = nn.LSTM(3, 4), packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            return self.layer(pack_padded_sequence(x, torch.full((2,), 5)))[1][1][0]
        return self.layer(x)[1][1][0]


def test_cells_of_packed_sequences_are_cells() -> None:
    x, start, found = torch.randn(5, 2, 3).double(), torch.randn(2, 4).double(), []
    plain = Cells(False).double()
    for packed in (False, True):
        model = Cells(packed).double()
        model.load_state_dict(plain.state_dict())
        found.append(passed(recorded(model, x), model, x, start)[1])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
    assert found[0].abs().max() > 1e-3
