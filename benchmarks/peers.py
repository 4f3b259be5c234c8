"""How each library explains a batch in these benchmarks: the set-up of every peer, in one place.

Peers run at their best: parameters without gradients, channels_last like ours, batch norm merged by
their own canonizers, their objects made once and used for every call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import relprop

__all__ = ["VARIANTS", "declare_torchvision_operators", "network", "variants"]

Call = Callable[[], Any]
VARIANTS = {
    "lrp_epsilon": ("relprop", "captum"),
    "epsilon_plus": ("relprop", "relprop frozen", "zennit"),
    "epsilon_alpha2_beta1": ("relprop", "relprop frozen", "zennit"),
}
"""Methods, and who can do each."""


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


def variants(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: str = "highest",
    triton: bool = False,
) -> dict[str, Call]:
    """Everyone who can do something with this model, by "method | who".

    `triton` adds this library's Triton backend.
    """
    calls: dict[str, Call] = {"gradient | autograd": lambda: _gradient(model, images, labels)}
    for method, who in VARIANTS.items():
        for library in (*who, *(("relprop triton",) if triton else ())):
            call = _MAKERS[library](name, model, images, labels, method, precision)
            if call is not None:
                calls[f"{method} | {library}"] = call
    return calls


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    x = images.detach().requires_grad_()
    chosen = model(x).gather(1, labels.unsqueeze(1)).sum()
    (gradient,) = torch.autograd.grad(chosen, x)
    return gradient


def _relprop(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, method: str, precision: str
) -> Call:
    explainer = relprop.Explainer(model, method, precision=precision)
    return lambda: explainer(images, target=labels)


def _relprop_frozen(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, method: str, precision: str
) -> Call:
    explainer = relprop.Explainer(model, method, precision=precision, frozen=True)
    return lambda: explainer(images, target=labels)


def _relprop_triton(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, method: str, precision: str
) -> Call:
    explainer = relprop.Explainer(model, method, precision=precision, backend="triton")
    return lambda: explainer(images, target=labels)


def _zennit(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, method: str, precision: str
) -> Call | None:
    try:
        from zennit import composites
        from zennit.attribution import Gradient
        from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    except ImportError:
        return None
    canonizer = ResNetCanonizer() if "resnet" in name else VGGCanonizer()
    classes = {
        "epsilon_plus": composites.EpsilonPlus,
        "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1,
    }
    composite = classes[method](canonizers=[canonizer])
    count = int(model(images[:1]).shape[1])

    def start(output: Tensor) -> Tensor:
        return output.detach() * nn.functional.one_hot(labels, count).to(output)

    def call() -> Tensor:
        with Gradient(model=model, composite=composite) as attributor:
            _, relevance = attributor(images.detach().clone(), start)
        return relevance

    return call


def _captum(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, method: str, precision: str
) -> Call | None:
    if "resnet" in name:  # its LRP refuses a ReLU module that is called twice
        return None
    try:
        from captum.attr import LRP
    except ImportError:
        return None
    lrp = LRP(model)
    return lambda: lrp.attribute(images.detach().clone().requires_grad_(), target=labels)


_MAKERS: dict[str, Callable[..., Call | None]] = {
    "relprop": _relprop,
    "relprop frozen": _relprop_frozen,
    "relprop triton": _relprop_triton,
    "zennit": _zennit,
    "captum": _captum,
}
