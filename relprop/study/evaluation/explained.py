"""The study's seven explanation methods for one network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from relprop.comparison import Comparison
from relprop.errors import InputError
from relprop.study import networks as study
from relprop.study.evaluation.reported import SHORT

__all__ = ["LABELS", "METHODS", "TABLE", "Explained"]

METHODS: dict[str, study.Kind] = {
    "sensitivity": "sensitivity",
    "guided_backprop": "guided_backprop",
    "simple_taylor": "simple_taylor",
    "deep_taylor": "deep_taylor",
    "lrp_alpha1.2_beta0.2": ("lrp", 1.2, 0.2),
    "lrp_alpha1.5_beta0.5": ("lrp", 1.5, 0.5),
    "lrp_alpha2_beta1": ("lrp", 2.0, 1.0),
}
"""The methods in the study's order, as `relprop.study.networks` takes them."""

LABELS = {
    "sensitivity": "Sensitivity Analysis",
    "guided_backprop": "Guided Backprop",
    "simple_taylor": "Simple Taylor Decomposition",
    "deep_taylor": "Deep Taylor Decomposition",
    "lrp_alpha1.2_beta0.2": "LRP-α1.2β0.2",
    "lrp_alpha1.5_beta0.5": "LRP-α1.5β0.5",
    "lrp_alpha2_beta1": "LRP-α2β1",
}
"""The methods' names in print."""

TABLE = tuple(SHORT)
"""The methods of the table of cosine similarities."""

CONSERVING = tuple(key for key in METHODS if key == "deep_taylor" or key.startswith("lrp_"))
"""The methods whose relevance adds up to relu of the logit."""

_SQUARED = ("guided_backprop",)
"""Shown squared in the study, as sensitivity is by definition."""


class Explained:
    """A network of the study together with explanations of it.

    The network is captured once for all methods, and its parameters must not change any more.

    Args:
        model: the network, in eval mode.
        architecture: its name, one of `relprop.study.networks.ARCHITECTURES`.
        methods: which of `METHODS`, in the order of the result.

    Raises:
        InputError: an unknown architecture or method.
    """

    def __init__(
        self, model: nn.Module, architecture: str, methods: Sequence[str] = tuple(METHODS)
    ) -> None:
        unknown = [key for key in methods if key not in METHODS]
        if unknown:
            raise InputError(
                f"evaluation: no method {unknown[0]!r}; there are {', '.join(METHODS)}"
            )
        made = {key: study.method(architecture, METHODS[key]) for key in methods}
        self._comparison = Comparison(model, made, frozen=True)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits `[N, classes]`, and the pixels' relevance for each image's label by method.

        Args:
            images: `[N, 1, H, W]`.
            labels: int64 `[N]`.

        Returns:
            The logits, and relevance `[N, 1, H, W]` of every method, guided backprop's squared.
        """
        found = {}
        for key, result in self._comparison.explain(images, target=labels, report=False).items():
            output, relevance = result.output, result.relevance
            assert isinstance(relevance, Tensor)
            found[key] = relevance.square() if key in _SQUARED else relevance
        return output, found
