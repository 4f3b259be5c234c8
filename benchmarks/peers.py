"""How each library explains: the set-up of everyone that is measured, in one place.

Everybody runs at their best: parameters without gradients, channels_last, the same threads and
number format, batch norm merged by their own canonizers, their objects made once and used for every
call.  A maker returns a function of a batch and its targets, or None where the library cannot do
the job or is not installed.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import relprop

__all__ = [
    "PIXELS",
    "Explain",
    "Peer",
    "captum",
    "declare_torchvision_operators",
    "gradient",
    "network",
    "ours",
    "peers",
    "zennit",
    "zennit_rule",
]

Explain = Callable[[Tensor, Tensor], Tensor]
PIXELS = {"low": -3.0, "high": 3.0}
"""The box of the inputs, where a method asks for one."""


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A torchvision network with seeded random weights and plausible batch-norm statistics."""
    declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_(0.0, 0.1)
    model = model.to(dtype=dtype, memory_format=torch.channels_last).eval()
    return model.requires_grad_(False)


def declare_torchvision_operators() -> None:
    """torchvision's wheel beside a CPU build of torch: its models import once these exist."""
    if hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise SystemExit("the CNN benchmarks need torchvision: pip install --no-deps torchvision")
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[torch.library.Library] = []


@dataclass(frozen=True)
class Peer:
    """A library and what it was set up with.

    Attributes:
        library: as tables name it.
        explain: from a batch and its targets to relevance.
        precision: of its products.
        most: samples that it is given at a time; 0 for a whole batch.
    """

    library: str
    explain: Explain
    precision: str = "highest"
    most: int = 0


def peers(
    model: nn.Module,
    method: Any,
    *,
    precision: str = "highest",
    triton: bool = False,
    naive: bool = True,
) -> list[Peer]:
    """Everyone who can explain a model by a method, the plain gradient first.

    Args:
        model: in eval mode, without gradients.
        method: a name, or what else `relprop.Explainer` takes; peers know names alone.
        precision: of relprop's products.
        triton: also relprop's Triton backend.
        naive: also the naive reference.
    """
    on_cuda = next(model.parameters()).is_cuda
    # there whoever follows the process's settings may take TF32, see benchmarks.cnn
    theirs = "high" if on_cuda and precision != "highest" else "highest"
    found = [
        Peer("gradient", gradient(model), theirs),
        Peer("relprop", ours(model, method, precision=precision), precision),
    ]
    if method != "lrp_epsilon":  # which derives nothing from the weights
        call = ours(model, method, precision=precision, frozen=True)
        found.append(Peer("relprop frozen", call, precision))
    if triton:
        call = ours(model, method, precision=precision, backend="triton")
        found.append(Peer("relprop triton", call, precision))
    z, c = zennit(model, method), captum(model, method)
    others = [Peer(name, own, theirs) for name, own in (("zennit", z), ("captum", c)) if own]
    if on_cuda and precision == "medium":
        found.append(Peer("gradient bfloat16", in_bfloat16(gradient(model)), precision))
        if z is not None:
            others.append(Peer("zennit bfloat16", in_bfloat16(z), precision))
    if naive:
        # sample by sample, as fast a sample as in a batch: a batch would take a round's half
        slow = ours(model, method, backend="reference")
        others.append(Peer("naive reference", slow, theirs, most=1))
    return found + others


def in_bfloat16(explain: Explain) -> Explain:
    """The same with products in bfloat16, as torch.autocast makes them."""

    def explained(x: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return explain(x, target)

    return explained


def gradient(model: nn.Module) -> Explain:
    """Autograd: the output at the target, differentiated by the input alone."""

    def explain(x: Tensor, target: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        chosen = model(x).gather(1, target.unsqueeze(1)).sum()
        (found,) = torch.autograd.grad(chosen, x)
        return found

    return explain


def ours(model: nn.Module, method: Any, **options: Any) -> Explain:
    """This library, captured once; `options` are `relprop.Explainer`'s."""
    box = PIXELS if method in ("epsilon_gamma_box", "deep_taylor") else None
    explainer = relprop.Explainer(model, method, method_options=box, **options)

    def explain(x: Tensor, target: Tensor) -> Tensor:
        found = explainer(x, target=target)
        assert isinstance(found, Tensor)
        return found

    return explain


def zennit(model: nn.Module, method: Any) -> Explain | None:
    """Zennit: its composite, registered for each call as its attributors do."""
    if importlib.util.find_spec("zennit") is None or not isinstance(method, str):
        return None
    declare_torchvision_operators()
    from zennit.attribution import Gradient

    composite = _zennit_composite(model, method)
    if composite is None:
        return None
    model = _without_eps(model)

    def explain(x: Tensor, target: Tensor) -> Tensor:
        def start(output: Tensor) -> Tensor:
            return output.detach() * nn.functional.one_hot(target, output.shape[1]).to(output)

        with Gradient(model=model, composite=composite) as attributor:
            _, relevance = attributor(x.detach().clone(), start)
        found: Tensor = relevance
        return found

    return explain


def _without_eps(model: nn.Module) -> nn.Module:
    """The same function with every batch norm's eps in its variance: merging leaves eps out."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(m, norms) and m.eps for m in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, norms) and module.running_var is not None:
            module.running_var += module.eps
            module.eps = 0.0
    return model


def _zennit_composite(model: nn.Module, method: str) -> Any:
    from zennit import composites, rules
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Convolution

    residual = any("Bottleneck" in type(m).__name__ or "BasicBlock" in type(m).__name__
                   for m in model.modules())  # fmt: skip
    canonizers = [ResNetCanonizer() if residual else VGGCanonizer()]
    uniform: Mapping[str, Callable[[], Any]] = {
        "lrp_epsilon": rules.Epsilon,
        "lrp_gamma": rules.Gamma,
        "lrp_zplus": rules.ZPlus,
        "lrp_alpha2_beta1": rules.AlphaBeta,
    }
    if method in uniform:
        rule = uniform[method]
        layers = [*layer_map_base(), (Convolution, rule()), (nn.Linear, rule())]
        return LayerMapComposite(layer_map=layers, canonizers=canonizers)
    names = {
        "epsilon_plus": ("EpsilonPlus", {}),
        "epsilon_plus_flat": ("EpsilonPlusFlat", {}),
        "epsilon_alpha2_beta1": ("EpsilonAlpha2Beta1", {}),
        "epsilon_alpha2_beta1_flat": ("EpsilonAlpha2Beta1Flat", {}),
        "epsilon_gamma_box": ("EpsilonGammaBox", PIXELS),
        "excitation_backprop": ("ExcitationBackprop", {}),
    }
    if method not in names:
        return None
    name, options = names[method]
    return getattr(composites, name)(canonizers=canonizers, **options)


def zennit_rule(layer: nn.Module, rule: Any) -> Explain | None:
    """One of Zennit's rules on one layer, registered once; the second argument is relevance."""
    if importlib.util.find_spec("zennit") is None:
        return None
    declare_torchvision_operators()
    from zennit import rules

    name = type(rule).__name__
    options = {
        "AlphaBeta": lambda: {"alpha": rule.alpha, "beta": rule.beta},
        "Gamma": lambda: {"gamma": rule.gamma},
        "ZBox": lambda: {"low": rule.low, "high": rule.high},
    }.get(name, dict)()
    getattr(rules, name)(**options).copy().register(layer)

    return backward(layer)


def backward(layer: Callable[[Tensor], Tensor]) -> Explain:
    """Autograd of a layer by its input; the second argument is the output's gradient."""

    def explain(x: Tensor, r: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(layer(x), x, r)
        return found

    return explain


def captum(model: nn.Module, method: Any) -> Explain | None:
    """Captum's LRP: the epsilon rule everywhere, with our stabilizer.

    What it refuses, such as a module that is called twice, it refuses when called.  It works on a
    copy: it takes modules apart, and an error must not leave the others' model so.
    """
    if method != "lrp_epsilon" or importlib.util.find_spec("captum") is None:
        return None
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    model = copy.deepcopy(model)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    lrp = LRP(model)

    def explain(x: Tensor, target: Tensor) -> Tensor:
        for layer in layers:  # it takes the rules off after every call
            layer.rule = EpsilonRule(epsilon=1e-6)
        found: Tensor = lrp.attribute(x.detach().clone().requires_grad_(), target=target)
        return found

    return explain
