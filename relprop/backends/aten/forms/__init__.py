"""How the ATen backend evaluates each rule: the cheapest exact form known.

A form is a pair: `forward` gives the layer's output and the tensors that `relevance` needs.
`GeneralForm` walks the groups of any rule; the others are derived in their docstrings.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import Tensor

from relprop.backends.aten.forms.constants import FlatForm, WSquareForm, ZBoxForm
from relprop.backends.aten.forms.general import GeneralForm
from relprop.backends.aten.forms.joint import JointForm
from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.backends.aten.forms.proportional import (
    AlphaBetaForm,
    EpsilonForm,
    GammaForm,
    RectifiedAlphaBetaForm,
    WidenedForm,
    ZPlusForm,
)
from relprop.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Joint,
    LinearRule,
    WSquare,
    ZBox,
    ZPlus,
)

__all__ = ["Form", "Layer", "form_of"]

R = TypeVar("R", bound=LinearRule)


class Form(Protocol[R]):
    """One way to evaluate a rule."""

    def forward(self, layer: Layer[R], a: Tensor) -> tuple[Tensor, Tensors]:
        """The layer's output and the tensors that `relevance` needs."""
        ...

    def relevance(self, layer: Layer[R], saved: Tensors, r: Tensor) -> Tensor:
        """Relevance of the input, `[K, *input shape]`, a new tensor."""
        ...


_FORMS: dict[type[LinearRule], Form[Any]] = {
    Epsilon: EpsilonForm(),
    Gamma: GammaForm(),
    ZBox: ZBoxForm(),
    WSquare: WSquareForm(),
    Flat: FlatForm(),
}


def form_of(layer: Layer[Any]) -> Form[Any]:
    """The form that evaluates a layer's rule."""
    rule = layer.rule
    if isinstance(rule, ZPlus | AlphaBeta):
        form = _sign_form(layer)
        return WidenedForm(form) if layer.widens else form
    if isinstance(rule, Joint) and layer.products.widens and rule.epsilon > 0:
        return JointForm()
    return _FORMS.get(type(rule), GeneralForm())


def _sign_form(layer: Layer[Any]) -> ZPlusForm | AlphaBetaForm | RectifiedAlphaBetaForm:
    rule = layer.rule
    if isinstance(rule, ZPlus) or rule.beta == 0:
        return ZPlusForm()
    plain = rule.epsilon > 0 and not rule.conserve and rule.zero_params is None
    if plain and layer.rectified and (layer.nonnegative or layer.widens):
        return RectifiedAlphaBetaForm()
    return AlphaBetaForm()
