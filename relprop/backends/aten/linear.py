"""Linear layers by library products: no autograd, any device, float64 to half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
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
from relprop.backends.aten.products import Products
from relprop.graph.maps import Dense
from relprop.operations.precision import effective_precision, float32_products
from relprop.operations.protocol import LinearCall
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

__all__ = ["AtenLinear", "Form", "Layer", "form_of"]


R = TypeVar("R", bound=LinearRule)


class Form(Protocol[R]):
    """One way to evaluate a rule."""

    def forward(self, layer: Layer[R], a: Tensor) -> tuple[Tensor, Tensors]:
        """The layer's output and the tensors that `relevance` needs."""
        ...

    def relevance(self, layer: Layer[R], saved: Tensors, r: Tensor) -> Tensor:
        """Relevance of the input, `[K, *input shape]`, a new tensor."""
        ...


@dataclass(frozen=True)
class _Saved:
    form: Form[Any]
    layer: Layer[Any]
    tensors: tuple[Tensor, ...]


class AtenLinear:
    """Linear layers as `relprop.operations.protocol.Backend` wants them.

    Half-precision operands are computed in float32, or as bfloat16 under precision "medium".
    """

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """See `relprop.operations.protocol.Backend.forward`."""
        dtype = torch.promote_types(torch.promote_types(a.dtype, w.dtype), torch.float32)
        kept, cache = cache is not None, {} if cache is None else cache
        precision = effective_precision(call.precision, a.device)
        rows = a.shape[:-1].numel() if isinstance(call.map, Dense) and not kept else None
        layer = Layer(
            rule=call.rule,
            products=Products(call.map, w.detach().to(dtype), precision, cache, rows),
            b=None if b is None else b.detach().to(dtype),
            shape=a.shape,
            nonnegative=call.nonnegative,
            rectified=call.rectified,
            cache=cache,
            known=known,
        )
        form = form_of(layer)
        with torch.no_grad(), float32_products(precision, a.device):
            z, tensors = form.forward(layer, a.detach())
        if not kept:  # weights made anew cost little; of all layers at once they fill the memory
            cache.clear()
        return z, _Saved(form, layer, tensors)

    def relevance(self, call: LinearCall, saved: Any, r: Tensor) -> Tensor:
        """See `relprop.operations.protocol.Backend.relevance`."""
        layer: Layer[Any] = saved.layer
        r = r.detach().to(layer.products.w.dtype)
        if r.numel() == 0:
            return r.new_zeros(r.shape[0], *layer.shape)
        with torch.no_grad(), float32_products(layer.products.precision, r.device):
            return saved.form.relevance(layer, saved.tensors, r)


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
