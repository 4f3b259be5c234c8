"""The test accuracies that the study reported, means over seven folds.

P. Chormai, "Designing Recurrent Neural Networks for Explainability", TU Berlin 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ACCURACY", "ACCURACY_SINGLE"]

_ACCURACIES = {
    "shallow": (0.981, 0.900),
    "deep": (0.982, 0.898),
    "deep_v2": (0.983, 0.906),
    "conv_deep": (0.992, 0.924),
    "r_lstm": (0.987, 0.918),
    "r_lstm_sd": (0.986, 0.915),
    "conv_plus_deep": (0.993, 0.924),
    "conv_r_lstm_sd": (0.994, 0.936),
    "conv_plus_r_lstm_sd": (0.989, None),
}

ACCURACY: Mapping[tuple[str, str], float] = {
    (task, model): value
    for model, pair in _ACCURACIES.items()
    for task, value in zip(("mnist_maj", "fashion_mnist_maj"), pair, strict=True)
    if value is not None
}
"""Test accuracy by (task, model), where one was reported."""

_SINGLE = {
    "shallow": (0.980, 0.888),
    "deep": (0.979, 0.892),
    "deep_v2": (0.979, 0.891),
    "conv_deep": (0.994, 0.931),
}

ACCURACY_SINGLE: Mapping[tuple[str, str], float] = {
    (task, model): value
    for model, pair in _SINGLE.items()
    for task, value in zip(("mnist", "fashion_mnist"), pair, strict=True)
}
"""The same for single images, read in one step."""
