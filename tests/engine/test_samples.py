"""The conservation report of packed sequences, sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import relprop
from relprop import rules

LENGTHS = torch.tensor([4, 6, 2, 6, 1])


class Packed(nn.Module):
    """A recurrent layer on packed sequences, and what is read of it."""

    def __init__(self, kind: type[nn.RNNBase], reads: str, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, bias=False, batch_first=True, **options)
        ways = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(4 * ways if reads != "state" else 4, 2, bias=False)
        self.inner = nn.Linear(3, 3, bias=False)
        self.reads = reads

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        ordered = bool((LENGTHS.sort(descending=True).values == lengths).all())
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=ordered)
        rows = self.inner(packed.data).relu()  # a layer on rows of all samples
        packed = PackedSequence(
            rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        out, state = self.rnn(packed)
        if self.reads == "state":
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        whole, _ = pad_packed_sequence(out, batch_first=True)
        return self.head(whole).sum(1)


CASES = [
    (nn.LSTM, "state", {}), (nn.LSTM, "output", {"bidirectional": True}),
    (nn.GRU, "output", {"num_layers": 2}), (nn.GRU, "state", {"bidirectional": True}),
    (nn.RNN, "output", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reads", "options"), CASES)
@pytest.mark.parametrize("ordered", [False, True], ids=["as they come", "longest first"])
def test_each_sample_keeps_its_own(
    kind: type[nn.RNNBase], reads: str, options: dict[str, Any], ordered: bool
) -> None:
    torch.manual_seed(2)
    model = Packed(kind, reads, **options).double().eval()
    lengths = LENGTHS.sort(descending=True).values if ordered else LENGTHS
    x = torch.randn(5, 6, 3).double()
    targets = torch.tensor([[0, 1]] * 5)
    explainer = relprop.Explainer(model, rules.Epsilon(1e-9), inputs=[0])
    result = explainer.explain(x, lengths, target=targets)
    report = result.conservation()
    scale = float(result.output.abs().max())
    # nothing has a bias: no step but stabilizers loses anything of any sample
    for row in report:
        assert float(row.per_sample.abs().max()) < 1e-5 * scale, (row.operation, row.path)
    assert_close(report.per_sample.T, result.convergence_delta.double(), rtol=0, atol=1e-6 * scale)


def test_the_sample_that_loses_is_named() -> None:
    torch.manual_seed(2)
    model = Packed(nn.LSTM, "output").double().eval()
    x = torch.randn(5, 6, 3).double()
    explainer = relprop.Explainer(model, rules.Epsilon(10.0), inputs=[0])
    result = explainer.explain(x, LENGTHS, target=1)
    rows = [row for row in result.conservation() if row.path == "inner"]
    alone = [
        explainer.explain(x[i : i + 1], LENGTHS[i : i + 1], target=1).conservation()
        for i in range(5)
    ]
    expected = [float(row.per_sample) for report in alone for row in report if row.path == "inner"]
    kept = [row for row in rows if row.operation == "dense_map"]
    ones = [float(r.per_sample) for report in alone for r in report
            if r.path == "inner" and r.operation == "dense_map"]  # fmt: skip
    assert len(expected) >= len(ones) == 5
    assert_close(kept[0].per_sample[0], torch.tensor(ones).double(), rtol=1e-6, atol=1e-9)
    assert result.conservation().worst is not None
