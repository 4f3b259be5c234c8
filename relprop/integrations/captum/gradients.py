"""Captum's gradient methods: `Saliency`, `InputXGradient`, `GuidedBackprop`, `Deconvolution`."""

from __future__ import annotations

from typing import Any

from captum._utils.gradient import compute_gradients
from captum.attr import Deconvolution as CaptumDeconvolution
from captum.attr import GuidedBackprop as CaptumGuidedBackprop
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from relprop.capture.call import unwrap
from relprop.explainer import Explainer
from relprop.integrations.captum.forms import Arguments, like_inputs, target_of, unwrappable
from relprop.integrations.captum.holding import Holding

__all__ = ["Deconvolution", "GuidedBackprop", "InputXGradient", "Saliency"]


class _Explained(Holding):
    """A gradient method of relprop's behind one of Captum's."""

    method: str
    forward_func: Any
    gradient_func: Any

    @property
    def _model(self) -> nn.Module | None:
        """The module behind `forward_func`; None for any other function.

        None too where the user, as Captum's neuron methods do, put another `gradient_func` in the
        place of Captum's: what it differentiates is Captum's to run.
        """
        if self.gradient_func is not compute_gradients:
            return None
        owner = getattr(self.forward_func, "__self__", self.forward_func)
        plain = getattr(self.forward_func, "__name__", "forward") in ("forward", "__call__")
        return unwrap(owner) if isinstance(owner, nn.Module) and plain else None

    def _explained(self, model: nn.Module, inputs: Any, target: Any, additional: Any) -> Any:
        arguments = Arguments(inputs, additional)
        model = self._holding(model, arguments)
        cache: dict[tuple[int, int], Explainer] = self.__dict__.setdefault("_explainers", {})
        key = id(model), len(arguments.inputs)
        if key not in cache:
            cache[key] = Explainer(model, self.method, inputs=arguments.explained)
        own = target_of(cache[key], arguments, target)
        return like_inputs(arguments, cache[key](*arguments.batched, target=own))


class _OfThreeArguments(_Explained):
    """The methods without arguments of their own; comes before Captum's class of the same name."""

    @unwrappable
    def attribute(
        self, inputs: Any, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """Maps shaped like `inputs`, a tuple for a tuple.

        Args:
            inputs, target, additional_forward_args: see `LRP.attribute`.
        """
        model = self._model
        if model is None:
            return super().attribute(  # type: ignore[misc]
                inputs, target, additional_forward_args
            )
        return self._explained(model, inputs, target, additional_forward_args)


class Saliency(_Explained, CaptumSaliency):  # type: ignore[misc]
    """The gradient's absolute value.  A `forward_func` that is no module is left to Captum.

    Args:
        forward_func: the model.
    """

    method = "gradient"

    @unwrappable
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
    ) -> Any:
        """Gradients shaped like `inputs`, a tuple for a tuple; signed with `abs=False`.

        Args:
            inputs, target, additional_forward_args: see `LRP.attribute`.
            abs: return absolute values.
        """
        model = self._model
        if model is None:
            return super().attribute(inputs, target, abs, additional_forward_args)
        found = self._explained(model, inputs, target, additional_forward_args)
        if not abs:
            return found
        return found.abs() if isinstance(found, Tensor) else tuple(part.abs() for part in found)


class InputXGradient(_OfThreeArguments, CaptumInputXGradient):  # type: ignore[misc]
    """Gradient times input.  A `forward_func` that is no module is left to Captum.

    Args:
        forward_func: the model.
    """

    method = "gradient_x_input"


class GuidedBackprop(_OfThreeArguments, CaptumGuidedBackprop):  # type: ignore[misc]
    """Guided backpropagation, functional ReLUs included.

    Args:
        model: the module, in eval mode.
    """

    method = "guided_backprop"


class Deconvolution(_OfThreeArguments, CaptumDeconvolution):  # type: ignore[misc]
    """Deconvolution, functional ReLUs included.

    Args:
        model: the module, in eval mode.
    """

    method = "deconvnet"
