"""The arithmetic floor: what the products and the compulsory traffic of an explanation cost.

How many products a rule needs follows from its own terms.  The groups' denominators (and the
layer's output) are bilinear in the parts of the input, a+ and a-, and of the weight, W+ and W-; so
is the relevance in the quotients and the weight's parts.  Written as a three-way array, such a
family of bilinear forms needs at least as many products as the greatest rank of its unfoldings.
Terms that no input changes (the bounds of ZBox, the ones of w^2 and Flat) need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import once
from relprop.graph.maps import Conv, LinearMap
from relprop.rules import LinearRule
from relprop.rules.terms import IDENTITY, Modifier

__all__ = ["LinearWork", "LstmWork", "Work", "copy_bandwidth", "products", "seconds_of_bytes"]

Vector = dict[Any, float]
COPY_BYTES = 2**28


def products(rule: LinearRule, nonnegative: bool) -> tuple[int, int]:
    """Contractions (the layer's own output among them) and adjoints that a rule needs at least.

    Args:
        rule: any linear rule.
        nonnegative: whether the layer's input is known to be >= 0.
    """
    terms = [(g, t) for g, group in enumerate(rule.groups) for t in group.terms]
    parts = sorted({t.input.part for _, t in terms if t.input.part}) or [None]

    def of_input(modifier: Modifier) -> Vector:
        found = _input(modifier, parts)
        return {k: v for k, v in found.items() if not (nonnegative and k[1] == "negative")}

    forms: list[dict[tuple[Any, ...], float]] = [{}]
    _add(forms[0], of_input(IDENTITY), _weight(IDENTITY), ())
    adjoint: dict[tuple[Any, ...], float] = {}
    for number, group in enumerate(rule.groups):
        forms.append({})
        for term in group.terms:
            carried = of_input(term.input)
            weight = _weight(term.weight)
            _add(adjoint, carried, weight, (number,))
            varying = {k: v for k, v in carried.items() if k[1] in ("positive", "negative")}
            _add(forms[-1], varying, weight, ())
    contraction = {(k, *key): v for k, form in enumerate(forms) for key, v in form.items()}
    return _least_products(contraction), _least_products(adjoint)


def _add(form: dict[tuple[Any, ...], float], a: Vector, w: Vector, more: tuple[Any, ...]) -> None:
    for i, x in a.items():
        for j, y in w.items():
            key = (i, j, *more)
            form[key] = form.get(key, 0.0) + x * y


def _input(modifier: Modifier, parts: Sequence[str | None]) -> Vector:
    """A modified input in terms of the parts of the input; of what no input changes, itself."""
    chosen = [modifier.part] if modifier.part else parts
    match modifier.kind:
        case "identity":
            return {(part, sign): 1.0 for part in chosen for sign in ("positive", "negative")}
        case "positive" | "negative":
            return {(part, modifier.kind): 1.0 for part in chosen}
        case _:
            return {(modifier.part, (modifier.kind, str(modifier.value))): 1.0}


def _weight(modifier: Modifier) -> Vector:
    match modifier.kind:
        case "identity":
            return {"positive": 1.0, "negative": 1.0}
        case "positive" | "negative":
            return {modifier.kind: 1.0}
        case "plus_positive":
            return {"positive": 1.0 + modifier.value, "negative": 1.0}
        case "plus_negative":
            return {"positive": 1.0, "negative": 1.0 + modifier.value}
        case "square":
            return {"square": 1.0}
        case "one" | "zero":
            return {}  # sums, no products
    raise ValueError(f"weight modifier {modifier.kind!r} is not known to the floor")


def _least_products(form: dict[tuple[Any, ...], float]) -> int:
    """The greatest rank of an unfolding of a three-way array of coefficients."""
    if not form:
        return 0
    axes = [sorted({key[axis] for key in form}, key=repr) for axis in range(3)]
    array = np.zeros([len(axis) for axis in axes])
    for key, value in form.items():
        array[tuple(axis.index(k) for axis, k in zip(axes, key, strict=True))] = value
    unfoldings = (np.moveaxis(array, axis, 0).reshape(len(axes[axis]), -1) for axis in range(3))
    return max(int(np.linalg.matrix_rank(unfolding)) for unfolding in unfoldings)


@dataclass(frozen=True)
class LinearWork:
    """The products of one linear layer.

    Attributes:
        map: its geometry.
        a: an input, for its shape and memory format.
        w: its weight.
        contractions, adjoints: how many of each.
        targets: rows of relevance for each sample.
    """

    map: LinearMap
    a: Tensor
    w: Tensor
    contractions: int
    adjoints: int
    targets: int = 1

    @property
    def multiplications(self) -> int:
        """Multiply-adds of all products."""
        # the weight's first axis: outputs, of a transposed convolution inputs
        transposed = isinstance(self.map, Conv) and self.map.transposed
        places = self.a.numel() if transposed else self._z.numel()
        one = places * (self.w.numel() // self.w.shape[0])
        return one * (self.contractions + self.targets * self.adjoints)

    @property
    def moved(self) -> int:
        """Bytes read or written at least: a, W, z in both passes, R in and R out."""
        own = self.a.nbytes + self.w.nbytes + self._z.nbytes
        return 2 * own + self.passing

    @property
    def held(self) -> int:
        """Bytes kept from the forward to the relevance pass."""
        return self.a.nbytes

    @property
    def passing(self) -> int:
        """Bytes of relevance that come in and go out, of every target."""
        return self.targets * (self.a.nbytes + self._z.nbytes)

    @property
    def _z(self) -> Tensor:
        """The output's shape, without a computation."""
        a, w = self.a.to("meta"), self.w.to("meta")
        return self.map.contraction(a, w)

    def library(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """One contraction and one adjoint by the library, each a call."""
        z = self.map.contraction(self.a, self.w)
        s = torch.rand_like(z)
        s = s if self.targets == 1 else torch.cat([s] * self.targets)
        rows = torch.Size((s.shape[0], *self.a.shape[1:]))
        return (
            lambda: self.map.contraction(self.a, self.w),
            lambda: self.map.adjoint(s, self.w, rows),
        )


@dataclass(frozen=True)
class LstmWork:
    """The products of one direction of an LSTM layer: math.md's reduced form.

    Attributes:
        steps, batch, inputs, hidden: sizes.
        targets: rows of relevance for each sample.
        like: a tensor of the number format and device.
    """

    steps: int
    batch: int
    inputs: int
    hidden: int
    like: Tensor
    targets: int = 1
    contractions: int = 1
    adjoints: int = 1

    @property
    def multiplications(self) -> int:
        """Multiply-adds: four gates forward, one map back."""
        rows = self.steps * self.batch * self.hidden * (self.inputs + self.hidden)
        return rows * (4 + self.targets)

    @property
    def moved(self) -> int:
        """Bytes: x, h and three saved vectors a step in both passes, the weights, R of x."""
        states = self.steps * self.batch * (self.inputs + 4 * self.hidden)
        weights = 5 * self.hidden * (self.inputs + self.hidden)
        relevance = self.targets * self.steps * self.batch * self.inputs
        return (2 * states + weights + relevance) * self.like.element_size()

    @property
    def held(self) -> int:
        """Bytes kept from the forward to the relevance pass."""
        vectors = self.inputs + 3 * self.hidden
        return self.steps * self.batch * vectors * self.like.element_size()

    @property
    def passing(self) -> int:
        """Bytes of relevance that come in and go out, of every target."""
        rows = self.targets * self.steps * self.batch
        return rows * (self.inputs + self.hidden) * self.like.element_size()

    def library(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """The products of the forward and of the relevance pass by the library, each a call."""
        new, rows = self.like.new_ones, self.batch * self.targets
        x, h = new(self.steps * self.batch, self.inputs), new(self.batch, self.hidden)
        w_x, w_h = new(self.inputs, 4 * self.hidden), new(self.hidden, 4 * self.hidden)
        s, r = new(self.steps * rows, self.hidden), new(rows, self.hidden)
        v_x, v_h = new(self.hidden, self.inputs), new(self.hidden, self.hidden)

        def forward() -> None:
            torch.mm(x, w_x)
            for _ in range(self.steps):
                torch.mm(h, w_h)

        def back() -> None:
            torch.mm(s, v_x)
            for _ in range(self.steps):
                torch.mm(r, v_h)

        return forward, back


class Work:
    """All products of an explanation, done by the library and nothing else.

    Args:
        items: the layers' products.
    """

    def __init__(self, items: Sequence[LinearWork | LstmWork]) -> None:
        self.items = tuple(items)

    @cached_property
    def _calls(self) -> list[tuple[Callable[[], Any], int]]:
        with torch.no_grad():
            return [
                (call, times)
                for item in self.items
                for call, times in zip(
                    item.library(), (item.contractions, item.adjoints), strict=True
                )
            ]

    @property
    def multiplications(self) -> int:
        """Multiply-adds of all products."""
        return sum(item.multiplications for item in self.items)

    @property
    def moved(self) -> int:
        """Bytes read or written at least."""
        return sum(item.moved for item in self.items)

    @property
    def held(self) -> int:
        """Bytes kept from the forward to the relevance pass."""
        return sum(item.held for item in self.items)

    @property
    def at_once(self) -> int:
        """Bytes that must be there at once: at a layer, in the relevance pass, what it and those
        before it kept, and the relevance of all targets that comes in and goes out."""
        kept, most = 0, 0
        for item in self.items:
            kept += item.held
            most = max(most, kept + item.passing)
        return most

    @property
    def counts(self) -> tuple[int, int]:
        """Contractions and adjoints."""
        return sum(i.contractions for i in self.items), sum(i.adjoints for i in self.items)

    def __call__(self) -> None:
        """Every product, one after the other."""
        with torch.no_grad():
            for call, times in self._calls:
                for _ in range(times):
                    call()


@cache
def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second, read and written, that a copy between large tensors reaches here."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = sorted(once(lambda: target.copy_(source)) for _ in range(7))
    return 2 * COPY_BYTES / seconds[3]


def seconds_of_bytes(moved: int, device: str = "cpu") -> float:
    """How long that many bytes take at the measured bandwidth of a copy."""
    return moved / copy_bandwidth(device)
