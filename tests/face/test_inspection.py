"""`relprop.check` and `relprop.info`."""

import pytest
import torch
from torch import Tensor, nn

import relprop


def test_info_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    found = relprop.info()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[k, v] for k, v in found.items()]
    assert found["torch"] == torch.__version__ and found["relprop"] == relprop.__version__
    assert "aten" in found["backends"] and "reference" in found["backends"]


class Attending(nn.Module):
    """A convolution with batch norm, and a softmax over its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.score = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).relu().flatten(2)
        return (self.score(h) @ h.mT).flatten(1)


def test_check_lists_operations_and_what_lacks_a_rule() -> None:
    report = relprop.check(Attending().eval(), torch.randn(2, 2, 5, 5))
    assert not report.ok and report.symbolic and report.origin == "export"
    assert ("score", "softmax") in report.unsupported
    assert report.operations["conv_map"] == 1 and report.operations["relu"] == 1
    assert report.dissolved == {"norm": "conv"}
    assert "conv" in report.modules and report.seconds > 0
    text = str(report)
    assert "unsupported: 'score' is aten.softmax" in text and "captured by export" in text


def test_check_explains_nothing_and_needs_a_tensor() -> None:
    with pytest.raises(relprop.InputError, match=r"at least one torch\.Tensor"):
        relprop.check(nn.Linear(2, 2).eval(), 3)


def test_a_loop_of_explain_captures_and_plans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from relprop.capture import cache as captured
    from relprop.engine.plan import Plan

    counts = {"captures": 0, "plans": 0}
    capture, make = captured.capture_by_export, Plan.make.__func__  # type: ignore[attr-defined]

    def counted_capture(*arguments: object) -> object:
        counts["captures"] += 1
        return capture(*arguments)

    def counted_make(cls: type[Plan], *arguments: object, **options: object) -> Plan:
        counts["plans"] += 1
        plan: Plan = make(cls, *arguments, **options)
        return plan

    monkeypatch.setattr(captured, "capture_by_export", counted_capture)
    monkeypatch.setattr(Plan, "make", classmethod(counted_make))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for size in (3, 1, 5, 2):
        relprop.explain(model, torch.randn(size, 3), target=1, method="lrp_epsilon")
    assert counts == {"captures": 1, "plans": 1}
    relprop.explain(model, torch.randn(2, 3), target=1, method="lrp_gamma")
    assert counts == {"captures": 1, "plans": 2}
