"""Recurrent layers in the Triton backend: refusals, forms, whole models on CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.errors import PlanningError
from relprop.rules import AlphaBeta, Recurrent, Rule

ROOT = Path(__file__).resolve().parents[2]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Classifier(nn.Module):
    """A recurrent layer and a linear one on its last step."""

    def __init__(self, kind: str = "lstm", hidden: int = 4, **options: Any) -> None:
        super().__init__()
        layers = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.recurrent = layers[kind](3, hidden, batch_first=True, **options)
        self.head = nn.LazyLinear(5)
        self(torch.zeros(2, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return out


def planned(model: nn.Module, rule: Rule) -> None:
    composite = relprop.composites.lrp_epsilon().with_rule("recurrent", rule)
    relprop.Explainer(model.eval(), composite, backend="triton")(torch.randn(2, 3, 3), target=0)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (Recurrent("prop"), "gate='prop'"),
        (Recurrent("abs"), "gate='abs'"),
        (Recurrent("half", epsilon=0), "gate='half', epsilon=0"),
        (Recurrent(epsilon=0), "epsilon=0"),
        (Recurrent(bias_factor=1), "bias_factor=1"),
        (Recurrent(rule=AlphaBeta(2, 1)), "rule=AlphaBeta"),
    ],
    ids=str,
)
def test_rules_without_a_kernel_are_refused_when_planned(rule: Rule, named: str) -> None:
    pytest.importorskip("triton")
    with pytest.raises(PlanningError) as error:
        planned(Classifier(), rule)
    text = str(error.value)
    assert text.startswith("'recurrent' (lstm): backend='triton' has no kernel") and named in text
    assert "it takes gate='all', epsilon > 0" in text and "use backend='aten'" in text


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_projections_are_refused_when_planned(options: dict[str, Any]) -> None:
    pytest.importorskip("triton")
    with pytest.raises(PlanningError, match=r"recurrent layer with a projection; it takes"):
        planned(Classifier(proj_size=2, **options), Recurrent())


@pytest.mark.parametrize(
    ("hidden", "operand", "weights", "name"),
    [
        (64, "bf16", 4, "held"),
        (128, "bf16", 4, "held"),
        (256, "bf16", 4, "streamed"),
        (512, "bf16", 4, "stepped"),
        (256, "bf16", 1, "held"),
        (257, "bf16", 1, "stepped"),
        (64, "tf32x3", 4, "held"),
        (128, "tf32x3", 4, "streamed"),
        (256, "tf32x3", 4, "stepped"),
        (128, "tf32x3", 1, "held"),
        (256, "tf32x3", 1, "streamed"),
        (64, "ieee", 4, "streamed"),
        (128, "ieee", 1, "streamed"),
        (256, "ieee", 4, "stepped"),
    ],
)
def test_form_on_hopper(hidden: int, operand: str, weights: int, name: str) -> None:
    tl = pytest.importorskip("triton.language")
    from relprop.kernels.recurrent.forms import Steps, form_for
    from relprop.kernels.tiling import Limits

    dtype = tl.bfloat16 if operand == "bf16" else tl.float32
    precision = "ieee" if operand == "bf16" else operand
    tiles = weights if weights > 1 else 5
    steps = Steps(256, hidden, weights, tiles, dtype, precision)
    form = form_for(steps, Limits(232_448, 1), cuda=True)
    assert form.name == name
    width = form.padded(hidden)
    assert width >= hidden and width % form.n == 0 and (name == "held" or width % form.k == 0)
    assert (form.n >= hidden) == (name != "stepped")
    assert form_for(steps, Limits(65_536, 1), cuda=False).name in ("held", "stepped")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_kernels_compile_for_hopper_without_spills(kind: str) -> None:
    pytest.importorskip("triton")
    arguments = ["--check", "--target", "sm_90", "--only", f"recurrent {kind} 256 bfloat16"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_kernels", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "forward_scan" in done.stdout and "relevance_scan" in done.stdout


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("hidden", [63, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_cuda_equals_float64(kind: str, hidden: int, precision: str) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    model = Classifier(kind, hidden, num_layers=2, bidirectional=True).cuda().eval()
    x, target = torch.randn(33, 20, 3, device="cuda"), torch.arange(33, device="cuda") % 5
    rule = relprop.rules.Epsilon(1e-2)
    explain = relprop.Explainer(model, rule, backend="triton", precision=precision)
    found = explain(x, target=target)
    again = explain(x, target=target)
    assert isinstance(found, Tensor) and isinstance(again, Tensor) and torch.equal(found, again)
    exact = relprop.Explainer(model.double(), rule, backend="aten")(x.double(), target=target)
    assert isinstance(exact, Tensor)
    limit = {"highest": 2e-4, "high": 1e-3, "medium": 0.2}[precision]
    assert (found - exact).norm() <= limit * exact.norm()


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [64, 256, 512])
def test_a_cuda_graph_replays_the_same_bits(hidden: int) -> None:
    pytest.importorskip("triton")
    from benchmarks.recurrent_gpu import graph
    from relprop.backends.triton import recurrent as triton_recurrent
    from relprop.graph.recurrent import Layout, directions_of

    layer = nn.LSTM(hidden, hidden, device="cuda")
    directions = directions_of([w.detach() for w in layer.parameters()], "lstm", "test")
    x, r = torch.randn(2, 9, 5, hidden, device="cuda")
    states, kept = x.new_zeros(1, 5, hidden), torch.empty_like(x)

    def explain() -> Tensor:
        _, saved = triton_recurrent.forward(
            Layout("lstm"), directions, x, states, states, Recurrent(), precision="medium"
        )
        return kept.copy_(triton_recurrent.relevance(saved, r[None], None, None)[0][0])

    expected = explain().clone()
    replay = graph(explain)
    kept.fill_(torch.nan)
    replay()
    assert torch.equal(kept, expected)
