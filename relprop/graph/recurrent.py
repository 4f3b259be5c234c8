"""The shape of a recurrent layer: its kind, its stack of directions, their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.rules import Epsilon, Joint, LinearRule, Recurrent, Rule

__all__ = [
    "CELLED",
    "GATES",
    "GRU_ONLY",
    "Direction",
    "Layout",
    "candidate_rule",
    "checked_lengths",
    "directions_of",
    "recurrent_rule",
    "suits",
]

GATES = {"lstm": 4, "r_lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Rows of a weight a hidden unit, by kind: LSTM i, f, g, o; GRU r, z, n (PyTorch's order).

"r_lstm" is an LSTM with a ReLU candidate whose hidden state is o * c, without a tanh.
"""
CELLED = ("lstm", "r_lstm")
"""Kinds with a cell beside the hidden state."""


@dataclass(frozen=True)
class Direction:
    """The weights of one layer in one direction, E inputs, H hidden units, P outputs.

    Attributes:
        w_ih: `[gates * H, E]`.
        w_hh: `[gates * H, P]`.
        b_ih, b_hh: `[gates * H]`, or None.
        w_hr: `[P, H]`, an LSTM's projection, or None (P = H).
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """The weights that there are, in PyTorch's order."""
        every = (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr)
        return [tensor for tensor in every if tensor is not None]

    def to(self, like: Tensor) -> Direction:
        """The weights in the number format and on the device of a tensor."""
        every = (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr)
        return Direction(*(None if t is None else t.detach().to(like) for t in every))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """A recurrent layer without its weights.

    Attributes:
        kind: a key of `GATES`.
        layers: how many are stacked.
        bidirectional: whether each runs both ways.
        batch_first: whether sequences are `[batch, T, E]` instead of `[T, batch, E]`.
    """

    kind: str
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False

    @property
    def ways(self) -> int:
        """Directions of each layer."""
        return 2 if self.bidirectional else 1


def directions_of(weights: Sequence[Tensor], kind: str, where: str) -> list[Direction]:
    """A flat list of weights, as `nn.LSTM._flat_weights`, direction by direction.

    Raises:
        InputError: the list does not divide into directions of this kind.
    """
    gates = GATES[kind]
    if len(weights) < 2 or any(w.ndim != 2 for w in weights[:2]):
        raise InputError(
            f"{where}: weights has shapes {[list(w.shape) for w in weights]}; expected a list as "
            "nn.LSTM._flat_weights: w_ih, w_hh, b_ih, b_hh of each layer and direction (biases may "
            "be left out everywhere, w_hr follows each where there is a projection)"
        )
    hidden = weights[0].shape[0] // gates
    biased = len(weights) > 2 and weights[2].ndim == 1
    projected = kind == "lstm" and weights[1].shape[1] != hidden
    count = 2 + 2 * biased + projected
    if len(weights) % count:
        raise InputError(
            f"{where}: {len(weights)} weights; expected a multiple of {count}, the number of "
            "weights of one direction as the first of them look"
        )
    groups = [list(weights[i : i + count]) for i in range(0, len(weights), count)]
    return [_direction(group, gates, biased, projected, where) for group in groups]


def _direction(
    group: list[Tensor], gates: int, biased: bool, projected: bool, where: str
) -> Direction:
    w_ih, w_hh = group[:2]
    b_ih, b_hh = group[2:4] if biased else (None, None)
    w_hr = group[-1] if projected else None
    rows, out = w_ih.shape[0], w_hh.shape[-1]
    expected = [[rows, w_ih.shape[-1]], [rows, out]] + [[rows]] * (2 * biased)
    expected += [[out, rows // gates]] if projected else []
    found = [list(tensor.shape) for tensor in group]
    if found != expected or rows % gates or (not projected and out != rows // gates):
        raise InputError(
            f"{where}: weights of shapes {found}; expected w_ih [{gates}H, in], w_hh [{gates}H, "
            f"H], biases [{gates}H]" + (", and with a projection w_hh [4H, P], w_hr [P, H]"
                                        if gates == 4 else "")
        )  # fmt: skip
    return Direction(w_ih, w_hh, b_ih, b_hh, w_hr)


def recurrent_rule(rule: Rule, kind: str, where: str) -> Recurrent:
    """The rule of a recurrent layer; a rule of linear maps is that of its candidate's map.

    Raises:
        InputError: no such rule, or a GRU is asked for more than signal takes all.
    """
    if isinstance(rule, LinearRule):
        plain = rule == Epsilon(rule.epsilon)
        rule = Recurrent(epsilon=rule.epsilon, rule=None if plain else rule)
    if not isinstance(rule, Recurrent):
        raise InputError(f"{where}: rule is {rule!r}; expected a Recurrent or a linear rule")
    if not suits(rule, kind):
        raise InputError(f"{where}: rule is {rule!r}; {GRU_ONLY}")
    return rule


GRU_ONLY = "a GRU takes gate='all' and no rule of its own for the candidate's map"
"""The limits of `Recurrent` on a GRU, whose reset gate scales the weights of each sample."""


def suits(rule: Recurrent, kind: str) -> bool:
    """Whether the rule is defined for that kind of layer."""
    return kind != "gru" or (rule.gate == "all" and rule.rule is None)


def candidate_rule(rule: LinearRule, inputs: int) -> LinearRule:
    """The rule of a map on [x, h]; of a `Joint` without channels the pixels are x."""
    if isinstance(rule, Joint) and rule.channels is None:
        return Joint(rule.pixel, rule.state, rule.epsilon, rule.zero_params, (0, inputs))
    return rule


def checked_lengths(
    where: str, lengths: Any, batch: int, steps: int, device: torch.device
) -> Tensor | None:
    """Lengths as an integer tensor `[batch]`, or None.

    Raises:
        InputError: not one integer from 1 to T a sample.
    """
    if lengths is None:
        return None
    tensor = torch.as_tensor(lengths, device=device)
    if tensor.is_floating_point() or tensor.dtype is torch.bool or tuple(tensor.shape) != (batch,):
        raise InputError(
            f"{where}: lengths is {tensor.dtype} of shape {list(tensor.shape)}; expected one "
            f"integer a sample, [{batch}]"
        )
    low, high = int(tensor.min()), int(tensor.max())
    if low < 1 or high > steps:
        raise InputError(
            f"{where}: lengths run from {low} to {high}; expected 1 to {steps}, the steps of the "
            "input" + ("; leave out empty sequences" if low < 1 else "")
        )
    return tensor.long()
