"""Whole recurrent models in the Triton backend: the reference's relevance, by kernels alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.errors import InputError
from relprop.functional import gru_relevance, lstm_relevance, rnn_relevance
from relprop.rules import Recurrent

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Words(nn.Module):
    """Tokens to classes: embedding, a recurrent layer, a linear one on its last step or states."""

    def __init__(self, kind: str = "lstm", reads: str = "step", **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.recurrent = LAYERS[kind](4, 5, batch_first=True, **options)
        ways = 2 if self.recurrent.bidirectional else 1
        self.reads = reads
        self.head = nn.Linear(5 * ways, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out, state = self.recurrent(self.embedding(tokens))
        if self.reads == "step":
            return self.head(out[:, -1])
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last[-self.head.in_features // 5 :].transpose(0, 1).flatten(1))


class Cells(nn.Module):
    """Steps written out with cells of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.LSTMCell(3, 4), nn.GRUCell(4, 4)
        self.last = nn.RNNCell(4, 4, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        state, h = None, None
        for step in range(x.shape[1]):
            state = self.lower(x[:, step], state)
            h = self.upper(state[0], h)
        return self.last(h)


class Packed(nn.Module):
    """A layer on packed sequences."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.recurrent = LAYERS[kind](3, 4, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([4, 3, 1], device="cpu")
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0])
        return self.head(out.sum(0))


def assert_reference(model: nn.Module, *inputs: Tensor, **options: Any) -> None:
    target = torch.tensor([[0, 2], [1, 1], [2, 0]])
    method = Recurrent(epsilon=1e-3)
    composite = relprop.composites.lrp_epsilon().with_rule("recurrent", method)
    found, expected = (
        relprop.Explainer(model.eval(), composite, backend=backend)(
            *inputs, target=target, **options
        )
        for backend in ("triton", "reference")
    )
    assert isinstance(found, Tensor) and isinstance(expected, Tensor)
    limit = 2e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=limit)
    assert expected.abs().max() > 0


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked both ways": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}
QUICK = {
    ("lstm", "step", "plain"),
    ("lstm", "state", "stacked both ways"),
    ("gru", "state", "no bias"),
    ("rnn", "step", "plain"),
}


def matrix() -> list[Any]:
    """Every kind of layer, what is read of it, its options."""
    return [
        pytest.param(
            kind,
            reads,
            OPTIONS[name],
            marks=[] if (kind, reads, name) in QUICK else [pytest.mark.slow],
            id=f"{kind}, {reads}, {name}",
        )
        for kind in LAYERS
        for reads in ("step", "state")
        for name in OPTIONS
    ]


@pytest.mark.parametrize(("kind", "reads", "options"), matrix())
def test_embedding_recurrent_linear(
    kind: str, reads: str, options: dict[str, Any], launches: Counter[str]
) -> None:
    tokens = torch.randint(0, 11, (3, 4))
    model = Words(kind, reads, **options)
    assert_reference(model, tokens)
    layers = model.recurrent.num_layers
    assert launches["forward_scan"] % layers == 0 and launches["relevance_scan"] == layers


def test_lengths_of_samples() -> None:
    tokens = torch.randint(0, 11, (3, 4))
    assert_reference(Words("lstm", bidirectional=True), tokens, lengths=[4, 1, 2])


def test_cells() -> None:
    assert_reference(Cells(), torch.randn(3, 2, 3))


@pytest.mark.parametrize(
    "kind", ["lstm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gru", "rnn"))]
)
def test_packed_sequences(kind: str) -> None:
    model, x = Packed(kind), torch.randn(4, 3, 3)
    target = torch.tensor([0, 1, 2])
    results = [
        relprop.Explainer(model, relprop.rules.Epsilon(1e-3), backend=backend, batch_dim=1)(
            x, target=target
        )
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_the_plan_names_the_kernels() -> None:
    explainer = relprop.Explainer(Words(num_layers=2), "lrp_epsilon", backend="triton")
    explainer(torch.randint(0, 11, (2, 3)), target=0)
    row = next(line for line in str(explainer.plan).splitlines() if " lstm " in line)
    assert " triton " in row


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_stays_near(precision: str) -> None:
    model, tokens = Words(), torch.randint(0, 11, (3, 4))
    found, expected = (
        relprop.Explainer(model, relprop.rules.Epsilon(1e-2), backend=backend, precision=precision)(
            tokens, target=0
        )
        for backend in ("triton", "reference")
    )
    limit = 1e-4 if precision == "high" else 0.1
    assert (found - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize("function", [lstm_relevance, gru_relevance, rnn_relevance])
def test_functions_take_the_backend(function: Any) -> None:
    layer = LAYERS[function.__name__.removesuffix("_relevance")](3, 4, num_layers=2)
    x, r, h0 = torch.randn(4, 2, 3), torch.randn(4, 2, 4), torch.randn(2, 2, 4)
    options: dict[str, Any] = {"h0": h0, "lengths": [4, 2], "rule": Recurrent(epsilon=1e-2)}
    weights = layer._flat_weights
    found, expected = (
        function(x, weights, r, backend=backend, **options) for backend in ("triton", "reference")
    )
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_r_lstm_function() -> None:
    layer = nn.LSTM(3, 4)
    x, r = torch.randn(4, 2, 3), torch.randn(4, 2, 4)
    options: dict[str, Any] = {"nonlinearity": "relu", "rule": Recurrent(epsilon=1e-2)}
    found, expected = (
        lstm_relevance(x, layer._flat_weights, r, backend=backend, **options)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_functions_refuse_what_has_no_kernel() -> None:
    layer = nn.LSTM(3, 4, proj_size=2)
    x, r = torch.randn(4, 2, 3), torch.randn(4, 2, 2)
    with pytest.raises(InputError, match=r"lstm_relevance: .*a projection.*use backend='aten'"):
        lstm_relevance(x, layer._flat_weights, r, backend="triton")
    with pytest.raises(InputError, match=r"lstm_relevance: the input is float64"):
        weights = [w.double() for w in nn.LSTM(3, 2)._flat_weights]
        lstm_relevance(x.double(), weights, r.double(), backend="triton")
