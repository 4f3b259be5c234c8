"""The similarities that the study reported, and what is known of them.

P. Chormai, "Designing Recurrent Neural Networks for Explainability", TU Berlin 2018.  Means over
seven folds, read off the thesis's figures (within 0.001).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COSINE", "MODELS", "REFERENCES", "SHORT", "TASKS", "TITLES", "known_cause"]

SHORT = {
    "sensitivity": "SA",
    "guided_backprop": "GB",
    "deep_taylor": "DTD",
    "lrp_alpha1.5_beta0.5": "LRP-α1.5β0.5",
}
"""The methods of the table by relprop's names, and what its columns call them."""

TITLES = {
    "mnist_maj": "MNIST-MAJ",
    "fashion_mnist_maj": "FashionMNIST-MAJ",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
}
"""The tasks, and how the study writes them."""

REFERENCES = {"even relevance": 0.8165, "one right block": 0.7071, "the last block": 0.4714}
"""Cosine similarities of explanations that know nothing, or half."""

_MNIST, _FASHION = "mnist_maj", "fashion_mnist_maj"
_ROWS = {
    "shallow": ((0.727, 0.756, 0.478, 0.496), (0.711, 0.672, 0.472, 0.478)),
    "deep": ((0.719, 0.756, 0.681, 0.728), (0.712, 0.689, 0.618, 0.669)),
    "deep_v2": ((0.733, 0.773, 0.742, 0.760), (0.716, 0.709, 0.694, 0.707)),
    "conv_deep": ((0.753, 0.792, 0.769, 0.770), (0.725, 0.722, 0.714, 0.709)),
    "r_lstm": ((0.856, 0.917, 0.917, 0.949), (0.851, 0.898, 0.893, 0.935)),
    "r_lstm_sd": ((0.830, 0.939, 0.909, 0.972), (0.828, 0.924, 0.911, 0.953)),
    "conv_plus_deep": ((0.824, 0.769, 0.650, 0.697), (0.778, 0.818, 0.665, 0.729)),
    "conv_r_lstm_sd": ((0.803, 0.941, 0.889, 0.970), (0.805, 0.925, 0.898, 0.956)),
    "conv_plus_r_lstm_sd": ((0.850, 0.887, 0.882, 0.885), (0.790, 0.848, 0.849, 0.867)),
}

COSINE: Mapping[tuple[str, str], Mapping[str, float]] = {
    (task, model): dict(zip(SHORT, values, strict=True))
    for model, pair in _ROWS.items()
    for task, values in zip((_MNIST, _FASHION), pair, strict=True)
}
"""Mean cosine similarity by (task, model) and method, over 10,000 test samples."""

TASKS = (_MNIST, _FASHION)
MODELS = tuple(_ROWS)
"""What it was reported of."""

_PROPAGATED = ("deep_taylor", "lrp_alpha1.5_beta0.5")


def known_cause(model: str, method: str) -> str:
    """What was wrong with a reported value, in words; empty where nothing is known to be."""
    if method not in _PROPAGATED:
        return ""
    if model == "shallow":
        return (
            "the original's rule for the layer that pixels and state enter together gave "
            "inhibitory evidence positive relevance; here rules.Joint"
        )
    if model.startswith("conv_plus_"):
        return (
            "the original's rule for the convolutions that read their own maps did not conserve "
            "relevance; here rules.Joint"
        )
    return ""
