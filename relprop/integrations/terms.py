"""Rules that other libraries have and relprop.rules has not, as groups of terms.

They differ from the rules of nearly the same name there; the engine evaluates them like any rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from relprop.rules import AlphaBeta, LinearRule
from relprop.rules.terms import IDENTITY, NEGATIVE, POSITIVE, Group, Modifier, Term

__all__ = ["ScaledWeights", "WholeBiasAlphaBeta"]


@dataclass(frozen=True)
class ScaledWeights(LinearRule):
    """Epsilon with max(W, 0) counted `gain` times more, or alone; no input's sign matters.

    Captum's GammaRule (`gain`) and Alpha1_Beta0_Rule (None); iNNvestigate's ZPlusFast (None,
    without the bias).

    Args:
        gain: W becomes W + gain * max(W, 0); None makes it max(W, 0).
        epsilon: the stabilizer.
        zero_params: "bias" leaves the bias out of the denominator.
    """

    gain: float | None = None

    def __init__(
        self,
        gain: float | None = None,
        epsilon: float = 1e-9,
        zero_params: str | None = None,
    ) -> None:
        for name, value in (("gain", gain), ("epsilon", epsilon), ("zero_params", zero_params)):
            object.__setattr__(self, name, value)
        self.__post_init__()

    def terms(self) -> tuple[Group, ...]:
        if self.gain is None:
            weight = POSITIVE
        else:
            weight = Modifier("plus_positive", self.gain)
        return (Group((Term(IDENTITY, weight),), bias=IDENTITY),)


@dataclass(frozen=True)
class WholeBiasAlphaBeta(LinearRule):
    """AlphaBeta with the whole bias in both denominators, and no stabilizer.  iNNvestigate's.

    `AlphaBeta` puts max(b, 0) into the positive denominator and min(b, 0) into the negative one.

    Args:
        alpha, beta: as for `AlphaBeta`.
        epsilon: the stabilizer.
        zero_params: "bias" leaves the bias out of the denominators.

    Raises:
        ValueError: as for `AlphaBeta`.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 1.0,
        epsilon: float = 0.0,
        zero_params: str | None = None,
    ) -> None:
        AlphaBeta(alpha, beta)  # refuses what it refuses
        values = {"alpha": alpha, "beta": beta, "epsilon": epsilon, "zero_params": zero_params}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def terms(self) -> tuple[Group, ...]:
        same = (Term(POSITIVE, POSITIVE), Term(NEGATIVE, NEGATIVE))
        opposite = (Term(POSITIVE, NEGATIVE), Term(NEGATIVE, POSITIVE))
        return (
            Group(same, bias=IDENTITY, scale=self.alpha),
            Group(opposite, bias=IDENTITY, scale=-self.beta),
        )
