"""The operands of one recurrent layer, given as tensors: checked, in one form, evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.backends.checks import check_tensors
from relprop.errors import InputError
from relprop.recurrent import aten
from relprop.recurrent.layout import CELLED, Direction, Layout, directions_of, recurrent_rule
from relprop.recurrent.lengths import checked_lengths
from relprop.recurrent.oracle import relevance_of_samples
from relprop.rules import Recurrent, Rule

__all__ = ["Operands", "Relevance"]

Relevance = Tensor | Sequence[Tensor | None]
"""Of the output; or of the output, the last hidden states and the last cells."""


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
        self.where, self.backend = where, backend
        self.rule = recurrent_rule(rule, kind, where)
        if backend not in ("aten", "reference", "triton"):
            raise InputError(
                f"{where}: backend is {backend!r}; expected 'aten', 'reference' or 'triton'"
            )
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
        if self.backend == "triton":
            self._check_served()
        found = _relevance(
            self.where, self.backend, self.layout, weights, x, h, c, r, self.rule, valid
        )
        if not self.alone:
            return found
        r_x, r_h, r_c = found
        return r_x.squeeze(self.batch_axis), r_h[:, 0], None if r_c is None else r_c[:, 0]

    def _check_served(self) -> None:
        """Refuse what no kernel serves."""
        from relprop.backends import get, triton_recurrent

        get("triton")
        reason = triton_recurrent.limits_of(self.rule, self.directions[0].w_hr is not None)
        if reason is not None:
            raise InputError(f"{self.where}: {reason}")

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


def _relevance(
    where: str,
    backend: str,
    layout: Layout,
    weights: list[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    r: list[Tensor | None],
    rule: Recurrent,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = [None if part is None else part.unsqueeze(0) for part in r]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if backend == "reference":
            r_x, r_h, r_c = relevance_of_samples(layout, weights, x, h0, c0, rows, rule, lengths)
        elif backend == "triton":
            from relprop.backends import triton_recurrent

            _, kept = triton_recurrent.forward(
                layout, weights, x, h0, c0, rule, lengths, where=where
            )
            r_x, r_h, r_c = triton_recurrent.relevance(kept, *rows)
        else:
            _, saved = aten.forward(layout, weights, x, h0, c0, rule, lengths)
            r_x, r_h, r_c = aten.relevance(saved, *rows)
    return r_x[0], r_h[0], None if r_c is None else r_c[0]
