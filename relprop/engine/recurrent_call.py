"""The operands of one recurrent layer, given as tensors: checked, in one form, evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.backends import get
from relprop.engine.run import Engine
from relprop.errors import InputError, PlanningError
from relprop.graph import Node, Ref
from relprop.graph.checks import check_tensors
from relprop.graph.recurrent import CELLED, Layout, checked_lengths, directions_of, recurrent_rule
from relprop.operations.base import Parts, Step
from relprop.operations.recurrent import Call, Parted, Recurrence, States
from relprop.rules import Rule

__all__ = ["Operands", "Relevance"]

Relevance = Tensor | Sequence[Tensor | None]
"""Of the output; or of the output, the last hidden states and the last cells."""


class Given(Recurrence):
    """A layer whose operands are at hand, for a backend to run outside any graph."""

    def call(self, node: Node, values: Mapping[str, Any]) -> Call:
        return Call(*(values[ref.name] for ref in node.args))

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        return node.args[2], node.args[3], node.args[4]

    def projects(self, node: Node) -> bool:
        return bool(node.attributes["projects"])

    def pack(self, values: States, sizes: Tensor | None) -> States:
        return values

    def unpack(self, r: Parts, sizes: Tensor | None) -> list[Tensor | None]:
        return [r.items.get(index) for index in range(3)]


class Operands:
    """The checked operands of one call, in one number format."""

    def __init__(
        self,
        where: str,
        kind: str,
        x: Tensor,
        weights: Sequence[Tensor],
        relevance: Relevance,
        rule: Rule,
        batch_first: bool,
        backend: str,
    ) -> None:
        self.where = where
        self.rule = recurrent_rule(rule, kind, where)
        try:
            self.backend = get(backend)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        parts = [relevance] if isinstance(relevance, Tensor) else list(relevance)
        allowed = 3 if kind in CELLED else 2
        if not 1 <= len(parts) <= allowed or all(part is None for part in parts):
            raise InputError(
                f"{where}: relevance has {len(parts)} parts; expected a tensor, or relevance of "
                "the output, h_n" + (", c_n" if kind in CELLED else "") + ", one at least not None"
            )
        self.parts = [*parts, *[None] * (3 - len(parts))]
        named = {f"weights[{i}]": w for i, w in enumerate(weights)}
        given = {f"relevance[{i}]": r for i, r in enumerate(self.parts) if r is not None}
        check_tensors(where, x=x, **named, **given)
        wide = any(t.dtype is torch.float64 for t in (x, *weights))
        self.dtype = torch.float64 if wide else torch.float32
        self.alone = x.ndim == 2
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise InputError(
                f"{where}: x is {list(x.shape)}; expected [T, batch, E] "
                "([batch, T, E] with batch_first), with one step and one sample at least"
            )
        self.batch_axis = 0 if batch_first else 1
        self.x = x.unsqueeze(self.batch_axis) if self.alone else x
        self.directions = directions_of(weights, kind, where)
        self.layout = self._layout(kind, batch_first)

    def _layout(self, kind: str, batch_first: bool) -> Layout:
        """Number of layers and directions, from the weights and the width of the relevance."""
        count, out = len(self.directions), self.directions[0].w_hh.shape[1]
        features = self.x.shape[-1]
        if self.directions[0].w_ih.shape[1] != features:
            raise InputError(
                f"{self.where}: x has {features} features; the first of weights takes "
                f"{self.directions[0].w_ih.shape[1]}"
            )
        both = count % 2 == 0 and self.directions[1].w_ih.shape[1] == features
        r_out = self.parts[0]
        if both and r_out is not None and count > 1:
            both = r_out.shape[-1] == 2 * out
        elif both and features in (out, 2 * out):
            deeper = self.directions[-1].w_ih.shape[1]
            both = count > 2 and deeper == 2 * out
        ways = 2 if both else 1
        layout = Layout(kind, count // ways, both, batch_first)
        for index, direction in enumerate(self.directions):
            expected = features if index < ways else ways * out
            if direction.w_ih.shape[1] != expected or direction.w_hh.shape[1] != out:
                raise InputError(
                    f"{self.where}: weights of direction {index} take "
                    f"{direction.w_ih.shape[1]} inputs; expected {expected} in a stack of "
                    f"{layout.layers} layers, {ways} direction(s) each"
                )
        return layout

    def evaluate(
        self, h0: Tensor | None, c0: Tensor | None, lengths: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Relevance of x, h_0 and c_0, shaped as they were given."""
        batch, steps = self.x.shape[self.batch_axis], self.x.shape[1 - self.batch_axis]
        first = self.directions[0]
        states, out = len(self.directions), first.w_hh.shape[1]
        hidden = out if first.w_hr is None else first.w_hr.shape[1]
        h = self._state("h0", h0, (states, batch, out))
        c = self._state("c0", c0, (states, batch, hidden)) if self.layout.kind in CELLED else None
        width = self.layout.ways * out
        shape = (batch, steps, width) if self.layout.batch_first else (steps, batch, width)
        r = [
            self._part("relevance", self.parts[0], shape),
            self._part("relevance of h_n", self.parts[1], (states, batch, out)),
            self._part("relevance of c_n", self.parts[2], (states, batch, hidden)),
        ]
        valid = checked_lengths(self.where, lengths, batch, steps, self.x.device)
        x = self.x.to(self.dtype)
        weights = [direction.to(x) for direction in self.directions]
        r_x, r_h, r_c = self._relevance(Call(self.layout, weights, x, h, c, valid), r)
        if not self.alone:
            return r_x, r_h, r_c
        return r_x.squeeze(self.batch_axis), r_h[:, 0], None if r_c is None else r_c[:, 0]

    def _relevance(self, call: Call, r: Sequence[Tensor | None]) -> Parted:
        """By the backend's own operation."""
        values, names = call._asdict(), tuple(Ref(name) for name in call._fields)
        projects = self.directions[0].w_hr is not None
        node = Node("value", self.where, Call, names, attributes={"projects": projects})
        step = Step(node, Given(), ("x", "h0", "c0"), self.rule)
        try:
            operation = self.backend.operation(step)
        except PlanningError as error:
            raise InputError(str(error)) from None
        step, engine = replace(step, operation=operation), Engine(self.backend)
        parts = Parts({i: part.unsqueeze(0) for i, part in enumerate(r) if part is not None})
        with torch.no_grad(), torch.autocast(call.x.device.type, enabled=False):
            _, saved = operation.forward(step, values, engine)
            r_x, r_h, r_c = operation.relevance(step, saved, parts, engine)
        return r_x[0], r_h[0], None if r_c is None else r_c[0]

    def _state(self, name: str, state: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if state is None:
            return self.x.new_zeros(shape, dtype=self.dtype)
        check_tensors(self.where, **{name: state})
        return self._shaped(name, state, shape)

    def _part(self, name: str, r: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        return None if r is None else self._shaped(name, r, shape)

    def _shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        expected = list(shape)
        if self.alone:
            axis = self.batch_axis if name == "relevance" else 1
            expected.pop(axis)
            tensor = tensor.unsqueeze(axis) if tensor.ndim == 2 else tensor
        if tuple(tensor.shape) != shape:
            raise InputError(f"{self.where}: {name} is {list(tensor.shape)}; expected {expected}")
        return tensor.detach().to(self.dtype)
