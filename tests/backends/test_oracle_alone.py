"""The oracle shares no arithmetic with what it is compared to, in neither direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import backends, rules
from relprop.backends.reference import linear as reference
from relprop.composites import Composite
from relprop.functional import rnn_relevance
from relprop.graph.maps import Dense

ROOT = Path(relprop.__file__).parent

ORACLE = {
    "relprop.backends.reference.linear",
    "relprop.backends.reference.operations",
    "relprop.backends.reference.backend",
    "relprop.backends.reference.recurrent",
    "relprop.backends.reference.samples",
}
"""The oracle's modules."""

DATA = {
    "relprop.rules.bounds": {"bound_tensor"},
    "relprop.errors": {"InputError"},
    "relprop.graph": {"Node", "Ref", "map_refs"},
    "relprop.operations": {"Operation", "Parts", "Step"},
    "relprop.operations.base": {"Engine", "run_by"},
    "relprop.operations.protocol": {"LinearCall"},
    "relprop.operations.recurrent": {"Recurrence"},
    "relprop.graph.maps": {"Dense", "LinearMap"},
    "relprop.graph.recurrent": {"CELLED", "Direction", "Layout", "candidate_rule"},
    "relprop.rules": {"AlphaBeta", "Joint", "LinearRule", "Norm", "Pass", "Recurrent"},
    "relprop.rules.terms": {"Group", "Modifier"},
}
"""What the oracle may import: what a model, a layer and a rule are, nothing that computes."""


def name_of(path: Path) -> str:
    parts = ("relprop", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Modules that a file imports anywhere in it, and the names it takes from each."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, path
            yield from ((node.module, alias.name) for alias in node.names)


def touched(module: str, name: str | None) -> str:
    """The module that an import reaches, which a name may be."""
    whole = module if name is None else f"{module}.{name}"
    return whole if whole in ORACLE else module


def test_only_the_choice_of_a_backend_knows_the_oracle() -> None:
    files = {name_of(path): path for path in ROOT.rglob("*.py")}
    assert set(files) >= ORACLE
    reached = {
        (name, touched(*found))
        for name, path in files.items()
        if name not in ORACLE
        for found in imports(path)
        if touched(*found) in ORACLE
    }
    assert reached == {("relprop.backends", "relprop.backends.reference.backend")}


@pytest.mark.parametrize("name", sorted(ORACLE))
def test_the_oracle_takes_nothing_that_computes(name: str) -> None:
    path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
    for module, taken in imports(path):
        own = touched(module, taken) in ORACLE
        if module.split(".")[0] == "relprop" and not own:
            assert taken in DATA.get(module, set()), f"{name} takes {taken} from {module}"


def test_what_backends_run_is_not_what_the_oracle_runs() -> None:
    assert backends.get("reference").forward.__module__ == "relprop.backends.reference.backend"
    assert reference.quotient.__module__ == "relprop.backends.reference.linear"


def linear(backend: str) -> Tensor:
    """Two outputs; in the second two contributions cancel."""
    a, w = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, -1.0], [2.0, -1.0]]).double()
    call, engine = backends.LinearCall(Dense(), rules.Epsilon(0.0)), backends.get(backend)
    _, saved = engine.forward(call, a, w, None)
    r = torch.tensor([[[5.0, 7.0]]]).double()
    return torch.as_tensor(engine.relevance(call, saved, r))


def recurrent(backend: str) -> Tensor:
    """An RNN in whose second unit input and state cancel."""
    found = rnn_relevance(
        torch.tensor([[[1.0]]]).double(),
        [torch.tensor([[2.0], [1.0]]).double(), torch.eye(2).double()],
        torch.tensor([[[3.0, 4.0]]]).double(),
        nonlinearity="relu",
        h0=torch.tensor([[[1.0, -1.0]]]).double(),
        rule=rules.Recurrent(epsilon=0.0),
        backend=backend,
    )
    return torch.cat([part.flatten() for part in found])


class Halves(nn.Module):
    """The sum of both halves."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] + x[:, 2:]


def operation(backend: str) -> Tensor:
    """Two sums, the second of summands that cancel."""
    x = torch.tensor([[1.0, 2.0, 3.0, -2.0]]).double()
    composite = Composite(stabilizer=0.0)
    explainer = relprop.Explainer(Halves(), composite, start="one", backend=backend)
    found = explainer(x, target=torch.tensor([[0, 1]]))
    return torch.as_tensor(found)


ROOMS = {"linear": linear, "recurrent": recurrent, "operation": operation}


@pytest.mark.parametrize("room", ROOMS)
def test_a_fault_in_the_oracles_quotient_shows(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = ROOMS[room]
    expected = compared("aten")
    torch.testing.assert_close(compared("reference"), expected, rtol=1e-12, atol=0)

    def planted(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
        """0 / 0 = R."""
        divisor = reference.stabilize(z, epsilon)
        return r / torch.where(divisor == 0, 1.0, divisor)

    monkeypatch.setattr(reference, "quotient", planted)
    assert torch.equal(compared("aten"), expected)
    assert not torch.allclose(compared("reference"), expected)
