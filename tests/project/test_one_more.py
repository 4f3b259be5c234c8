"""One more of each kind of thing, as CONTRIBUTING.md says: a toy registered where a real one goes.

Every toy lies in as many places as a real one takes files; the registries are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from plans import Function, passed, recorded
from relprop import kernels, rules
from relprop.backends.aten import linear
from relprop.backends.aten.forms.proportional import EpsilonForm
from relprop.batch import export
from relprop.cli import main
from relprop.composites import Composite
from relprop.composites import selectors as kinds
from relprop.functional import linear_relevance
from relprop.graph import spellings
from relprop.io import inputs
from relprop.io.sources import Source
from relprop.operations import base
from relprop.rules.terms import IDENTITY, POSITIVE, ZERO


@dataclass(frozen=True)
class Upward(rules.LinearRule):
    """Positive weights alone, whatever the sign of the input."""

    def terms(self) -> tuple[rules.Group, ...]:
        return (rules.Group((rules.Term(IDENTITY, POSITIVE),), bias=ZERO),)


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_a_rule_is_its_terms(backend: str) -> None:
    # z = (1, -4), s = (10, -3.5); positive weights into input 0: 3; into input 1: 1 and 2
    w = torch.tensor([[3.0, 1.0], [-1.0, 2.0]]).double()
    x, r = torch.tensor([1.0, -2.0]).double(), torch.tensor([10.0, 14.0]).double()
    found = linear_relevance(x, w, None, r, Upward(0), backend=backend)
    assert_close(found, torch.tensor([30.0, -6.0]).double(), rtol=1e-14, atol=0)


def test_a_rule_is_a_program_of_the_kernels() -> None:
    program = kernels.compile_rule(Upward(0.25))
    assert program.weights[0] == POSITIVE and program.mode == "one" and program.epsilon == 0.25


def test_a_composite_takes_the_rule_by_a_kind_of_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3).double()
    composite = Composite(defaults=[("linear", Upward(1e-3))])
    found, expected = (
        relprop.Explainer(model, composite, backend=backend).explain(x, target=0).relevance
        for backend in ("aten", "reference")
    )
    assert found.abs().max() > 1e-3
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two operations that relprop does not know: twice(x) and tenth(x)."""
    monkeypatch.setattr(base, "_OPERATIONS", dict(base._OPERATIONS))
    monkeypatch.setattr(spellings, "_SPELLINGS", dict(spellings._SPELLINGS))
    monkeypatch.setattr(kinds, "_RULES_OF_KIND", dict(kinds._RULES_OF_KIND))
    library = torch.library.Library("relprop_toys", "DEF")
    for name, factor in (("twice", 2.0), ("tenth", 0.1)):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, _scaled(factor), "CompositeExplicitAutograd")
    yield torch.ops.relprop_toys
    library._destroy()


def _scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def test_a_spelling_is_one_entry(toys: Any) -> None:
    def spell(graph: Any, node: Any, fixed: Any) -> list[Any]:
        function = torch.ops.aten.mul.Tensor
        return [replace(node, op="mul", function=function, args=(node.args[0], 2.0))]

    spellings._SPELLINGS["twice"] = spell
    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: toys.twice(x))
    output, found = passed(recorded(model, x), model, x, start)
    assert_close(output, 2 * x, rtol=1e-14, atol=0)
    assert_close(found, start, rtol=1e-14, atol=0)


def test_an_operation_is_one_class(toys: Any) -> None:
    @base.register("tenth")
    class Tenth(base.Operation):
        """Hands on a tenth of what it is given."""

        kind, carry = "leak", "a tenth"

        def save(self, step: Any, values: Mapping[str, Any], out: Tensor) -> Any:
            return None

        def relevance(self, step: Any, saved: Any, r: Tensor, engine: Any) -> Sequence[Tensor]:
            return [r / 10]

    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: toys.tenth(x))
    output, found = passed(recorded(model, x), model, x, start)
    assert_close(output, x / 10, rtol=1e-14, atol=0)
    assert_close(found, start / 10, rtol=1e-14, atol=0)


def test_a_kind_of_layer_is_one_entry_of_the_rules_it_takes(toys: Any) -> None:
    kinds._RULES_OF_KIND["leak"] = (rules.Norm,)
    assert kinds.fits(rules.Norm(), "leak") and not kinds.fits(rules.Pass(), "leak")
    assert kinds.allowed_rules("leak") == "Norm"


def test_a_rule_of_ones_own_compiles() -> None:
    w, x = torch.randn(4, 3), torch.randn(2, 3)
    compiled = torch.compile(linear_relevance, backend="eager", fullgraph=True)
    for rule in (Upward(0.5), Upward(0.25)):
        found = compiled(x, w, None, torch.ones(2, 4), rule)
        assert torch.equal(found, linear_relevance(x, w, None, torch.ones(2, 4), rule))


def test_a_fast_form_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class UpwardForm(EpsilonForm):
        """Counts what it evaluates, by the definition."""

        met = 0

        def forward(self, layer: Any, a: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            UpwardForm.met += 1
            return layer.output(a), (a, layer.products.contraction(a, POSITIVE))

        def relevance(self, layer: Any, saved: tuple[Tensor, ...], r: Tensor) -> Tensor:
            a, z = saved
            s = r / torch.where(z >= 0, z + layer.rule.epsilon, z - layer.rule.epsilon)
            found: Tensor = layer.products.adjoint(s, POSITIVE, layer.shape) * a
            return found

    monkeypatch.setitem(linear._FORMS, Upward, UpwardForm())
    w, x, r = torch.randn(4, 3).double(), torch.randn(5, 3).double(), torch.randn(5, 4).double()
    found, expected = (
        linear_relevance(x, w, None, r, Upward(0.1), backend=backend)
        for backend in ("aten", "reference")
    )
    assert UpwardForm.met == 1
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_data_source_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def opened(spec: str, options: Any) -> Source:
        rows = torch.full((3, 1, 28, 28), float(spec.removeprefix("grey:")))
        return Source(spec, ["a", "b", "c"], rows.__getitem__)

    kind = inputs.Kind("grey:VALUE, images of one value", lambda s: s.startswith("grey:"), opened)
    monkeypatch.setattr(inputs, "KINDS", (kind, *inputs.KINDS))
    out = tmp_path / "out"
    assert main(["explain", "mnist_cnn", "grey:0.5", "--out", str(out)]) == 0
    (file,) = out.glob("*.safetensors")
    found = relprop.Explanation.load(file).relevance
    assert isinstance(found, Tensor) and found.shape == (3, 1, 28, 28)
    assert torch.equal(found[0], found[2])


def test_an_export_format_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lines(job: Any, out: Path, rows: range) -> None:
        out.write_text("\n".join(str(int(job[row]["index"])) for row in rows))

    monkeypatch.setitem(export.WRITERS, "txt", lines)
    job, out = tmp_path / "job", tmp_path / "job.txt"
    words = ["explain", "mnist_cnn", "mnist:sample", "--limit", "3", "--job", str(job)]
    assert main(words) == 0
    assert main(["export", str(job), "--to", "txt", "--out", str(out)]) == 0
    assert out.read_text().split() == ["0", "1", "2"]
