"""The families of convolutional networks, a random network of each: for tests and benchmarks.

Small inputs and, where a configuration allows it, small widths; the operations are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import declare_torchvision_operators

__all__ = ["FAMILIES", "Family", "randomised"]

CLASSES = 7


@dataclass(frozen=True)
class Family:
    """A network and how it is called.

    Attributes:
        name: as printed.
        build: makes it, with random weights.
        shape: of one sample.
        keyword: the name under which the forward takes its input; None for the first position.
        output: which of several outputs to explain, see `relprop.Explainer`.
        target: the entry explained: a class, or a class and a place.
        rectified: its only activations are ReLU, and its layers are so wide that none between
            two of them is without a positive contribution: the z-plus rule loses nothing.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    keyword: str | None = None
    output: Any = None
    target: Any = 3
    rectified: bool = False

    def inputs(
        self, dtype: torch.dtype, batch: int = 2
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments: seeded random numbers."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return ((x,), {}) if self.keyword is None else ((), {self.keyword: x})


def randomised(family: Family, plain: bool = False) -> nn.Module:
    """The family's network in eval mode, with random weights and random positive running variances.

    The variances are those of the network times random factors whose inverses have mean one, so
    that no signal dies or grows on its way through a hundred layers.

    Args:
        family: what to build.
        plain: every bias, shift and running mean 0, so that relevance can be conserved exactly.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = family.build().eval()
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    _randomise(name, parameter, plain)
        _settle(model, family, plain)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(torch.empty_like(buffer).uniform_(0.8, 1.25))
    return model.requires_grad_(False)


def _randomise(name: str, parameter: nn.Parameter, plain: bool) -> None:
    """Gains, shifts and layer scales begin as constants: random numbers instead."""
    if "bias" in name:
        parameter.zero_() if plain else parameter.normal_(0.0, 0.1)
    elif parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
        parameter.uniform_(0.8, 1.25)
    elif parameter.ndim > 1:
        nn.init.kaiming_normal_(parameter, nonlinearity="relu")


def _settle(model: nn.Module, family: Family, plain: bool) -> None:
    """Batch norms take the statistics of one batch, around a mean of 0 if `plain`."""

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        mean = torch.zeros_like(x[:, 0]) if plain else x.mean(1)
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_((x - mean.unsqueeze(1)).square().mean(1))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    args, kwargs = family.inputs(torch.float32, batch=8)
    model(*args, **kwargs)
    for hook in hooks:
        hook.remove()


def _torchvision(name: str, module: str = "", **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        declare_torchvision_operators()
        import torchvision.models

        models = getattr(torchvision.models, module) if module else torchvision.models
        model: nn.Module = getattr(models, name)(**{"num_classes": CLASSES, **options})
        return model

    return build


def _vgg(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: Any = _torchvision(name)()
        # the classifier's 120 million weights would test nothing more
        model.avgpool = nn.AdaptiveAvgPool2d((2, 3))
        model.classifier[0] = nn.Linear(512 * 6, 40)
        model.classifier[3], model.classifier[6] = nn.Linear(40, 40), nn.Linear(40, CLASSES)
        return model

    return build


def _s3d() -> nn.Module:
    model: Any = _torchvision("s3d", "video")()
    model.avgpool = nn.AvgPool3d(2, 1)  # its own takes 224 x 224
    return model


def _transformers(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        declare_torchvision_operators()
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
        model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
        return model

    return build


class UNet(nn.Module):
    """Two levels; transposed convolution and bilinear resampling, skips joined by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = self._block(3, 16)
        self.deep = self._block(16, 32)
        self.bottom = self._block(32, 32)
        self.up = nn.ConvTranspose2d(32, 32, 2, 2)
        self.join = self._block(64, 32)
        self.last = self._block(48, 32)
        self.head = nn.Conv2d(32, CLASSES, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, 3, height, width]` to `[batch, classes, height, width]`."""
        top = self.down(x)
        middle = self.deep(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        joined = self.join(torch.cat([middle, F.relu(self.up(bottom))], 1))
        wide = F.interpolate(joined, size=top.shape[2:], mode="bilinear", align_corners=False)
        result: Tensor = self.head(self.last(torch.cat([top, wide], 1)))
        return result


def _cnn(n: int) -> nn.Module:
    """A small CNN over n spatial axes."""
    conv: Any = {1: nn.Conv1d, 3: nn.Conv3d}[n]
    norm: Any = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[n]
    pool: Any = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[n]
    average: Any = {1: nn.AvgPool1d, 3: nn.AvgPool3d}[n]
    final: Any = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[n]
    return nn.Sequential(
        conv(2, 8, 3, padding=1), norm(8), nn.ReLU(), pool(2),
        conv(8, 12, 3, stride=2, groups=2), norm(12), nn.ReLU(), average(2, padding=1),
        final(2), nn.Flatten(), nn.Linear(12 * 2**n, CLASSES),
    )  # fmt: skip


_SMALL = {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("alexnet", _torchvision("alexnet"), rectified=True),
        Family("vgg16", _vgg("vgg16"), rectified=True),
        Family("vgg11_bn", _vgg("vgg11_bn"), rectified=True),
        Family("resnet18", _torchvision("resnet18"), rectified=True),
        Family("resnet50", _torchvision("resnet50"), rectified=True),
        Family("resnext50_32x4d", _torchvision("resnext50_32x4d"), rectified=True),
        Family("wide_resnet50_2", _torchvision("wide_resnet50_2"), rectified=True),
        Family("densenet121", _torchvision("densenet121"), rectified=True),
        Family("googlenet", _torchvision("googlenet", aux_logits=False, init_weights=False),
               rectified=True),
        Family("googlenet aux", _torchvision("googlenet", aux_logits=True, init_weights=False),
               rectified=True),
        Family("inception_v3 aux", _torchvision("inception_v3", aux_logits=True,
               init_weights=False), (3, 96, 96), rectified=True),
        Family("efficientnet_b0", _torchvision("efficientnet_b0")),
        Family("efficientnet_v2_s", _torchvision("efficientnet_v2_s")),
        Family("mobilenet_v2", _torchvision("mobilenet_v2")),
        Family("mobilenet_v3_small", _torchvision("mobilenet_v3_small")),
        Family("mobilenet_v3_large", _torchvision("mobilenet_v3_large")),
        Family("shufflenet_v2_x1_0", _torchvision("shufflenet_v2_x1_0")),
        Family("regnet_x_400mf", _torchvision("regnet_x_400mf"), rectified=True),
        Family("regnet_y_400mf", _torchvision("regnet_y_400mf")),
        Family("mnasnet1_0", _torchvision("mnasnet1_0")),
        Family("squeezenet1_1", _torchvision("squeezenet1_1"), rectified=True),
        Family("convnext_tiny", _torchvision("convnext_tiny")),
        Family("fcn_resnet50", _torchvision("fcn_resnet50", "segmentation", weights_backbone=None),
               output="out", target=(3, 20, 30), rectified=True),
        Family("fcn_resnet50 aux", _torchvision("fcn_resnet50", "segmentation",
               weights_backbone=None, aux_loss=True), output="aux", target=(3, 20, 30),
               rectified=True),
        Family("deeplabv3_resnet50", _torchvision("deeplabv3_resnet50", "segmentation",
               weights_backbone=None), target=(3, 20, 30), rectified=True),
        Family("lraspp_mobilenet_v3_large", _torchvision("lraspp_mobilenet_v3_large",
               "segmentation", weights_backbone=None), target=(3, 20, 30)),
        Family("r3d_18", _torchvision("r3d_18", "video"), (3, 4, 32, 32), rectified=True),
        Family("mc3_18", _torchvision("mc3_18", "video"), (3, 4, 32, 32), rectified=True),
        Family("r2plus1d_18", _torchvision("r2plus1d_18", "video"), (3, 4, 32, 32),
               rectified=True),
        Family("s3d", _s3d, (3, 14, 64, 64), rectified=True),
        Family("unet", UNet, (3, 32, 32), target=(3, 10, 12), rectified=True),
        Family("cnn 1-d", lambda: _cnn(1), (2, 37), rectified=True),
        Family("cnn 3-d", lambda: _cnn(3), (2, 13, 12, 11), rectified=True),
        Family("transformers ResNet", _transformers("ResNet", **_SMALL), keyword="pixel_values"),
        Family("transformers RegNet", _transformers("RegNet", groups_width=16, layer_type="y",
               **_SMALL), keyword="pixel_values"),
        Family("transformers ConvNext", _transformers("ConvNext", hidden_sizes=[8, 16, 24, 32],
               depths=[1, 2, 1, 1], drop_path_rate=0.1), keyword="pixel_values"),
        Family("transformers ConvNextV2", _transformers("ConvNextV2",
               hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1]), keyword="pixel_values"),
        Family("transformers MobileNetV1", _transformers("MobileNetV1", depth_multiplier=0.25),
               keyword="pixel_values", rectified=True),
        Family("transformers MobileNetV2", _transformers("MobileNetV2", depth_multiplier=0.35),
               keyword="pixel_values"),
        Family("transformers EfficientNet", _transformers("EfficientNet", width_coefficient=0.5,
               depth_coefficient=0.5, hidden_dim=640), keyword="pixel_values"),
        Family("transformers Bit", _transformers("Bit", num_groups=8, **_SMALL),
               keyword="pixel_values"),
        Family("transformers PoolFormer", _transformers("PoolFormer", depths=[1, 1, 1, 1],
               hidden_sizes=[8, 16, 24, 32]), keyword="pixel_values"),
        Family("transformers TextNet", _transformers("TextNet"), keyword="pixel_values",
               rectified=True),
        Family("transformers HGNetV2", _transformers("HGNetV2"), keyword="pixel_values"),
    )
}  # fmt: skip
"""By name."""
