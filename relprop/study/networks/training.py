"""Training the study's networks: which, to what accuracy, and the weights to ship."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relprop._version import __version__
from relprop.data import Task
from relprop.errors import InputError
from relprop.models import write_weights
from relprop.models.train import accuracy
from relprop.study.networks.registry import build, load, steps_and_width
from relprop.study.training import Recipe, Training

__all__ = ["ACCEPTED", "EPOCHS", "PAIRS", "Tasks", "start", "train", "weights_path"]

ACCEPTED = {"mnist_maj": 0.975, "fashion_mnist_maj": 0.85, "mnist": 0.98, "fashion_mnist": 0.85}
"""Accuracies from which on a network of a task is accepted, of the study."""

EPOCHS = 30
"""Planned, if nothing else is asked for; the study had 100 at a fifth of the rate."""

_MAJORITY = (
    "r_lstm_sd", "deep", "r_lstm", "deep_v2", "shallow",
    "conv_deep", "conv_r_lstm_sd", "conv_plus_deep", "conv_plus_r_lstm_sd",
)  # fmt: skip
_SINGLE = ("lenet", "shallow", "deep", "deep_v2", "conv_deep")

PAIRS = (
    *((name, task) for task in ("mnist_maj", "fashion_mnist_maj") for name in _MAJORITY[:5]),
    *((name, task) for name in _SINGLE for task in ("mnist", "fashion_mnist")),
    *((name, task) for name in _MAJORITY[5:] for task in ("mnist_maj", "fashion_mnist_maj")),
)
"""The (architecture, task) pairs of the study, the quickly trained first."""

Tasks = Callable[[str], Task]
"""From a split's name to its samples."""


def weights_path(folder: Path) -> Path:
    """Where a finished training leaves the weights to ship."""
    return folder / "weights.safetensors"


def start(
    name: str, task: str, folder: Path, recipe: Recipe, device: torch.device | str = "cpu"
) -> Training:
    """The training of an architecture for a task, gone on with where `folder` has a checkpoint."""
    return Training(
        partial(_begun, name, task, recipe.start_from),
        folder,
        recipe,
        torch.device(device),
        {"model": name, "task": task},
    )


def _begun(name: str, task: str, start_from: str) -> nn.Module:
    """A network to train: new, but for the tensors that a trained one has, too.

    Raises: FileFormatError where the other's weights are not shipped, InputError where none fits.
    """
    model = build(name, *steps_and_width(task))
    if start_from:
        own, other = model.state_dict(), load(start_from, task).state_dict()
        shared = {key: _widened(x, own[key]) for key, x in other.items() if key in own}
        fitting = {key: x for key, x in shared.items() if x is not None}
        if not fitting:
            raise InputError(
                f"{name}: no tensor of {start_from} has the name and shape of one of its own; "
                "start from an architecture with the same features, or from none"
            )
        model.load_state_dict({**own, **fitting})
    return model


def _widened(trained: Tensor, own: Tensor) -> Tensor | None:
    """A trained tensor in the shape of one's own, or None where it does not fit.

    A convolution that sees further channels behind the other's begins with zeros there: it starts
    with the smaller network's function (Net2Net, Chen et al. 2016).
    """
    if trained.shape == own.shape:
        return trained
    if not trained.ndim == own.ndim == 4:
        return None
    begun = torch.zeros_like(own)
    channels = begun[:, : trained.shape[1]]
    if channels.shape != trained.shape:
        return None
    channels.copy_(trained)
    return begun


def train(
    training: Training,
    splits: Tasks,
    *,
    advance: Callable[[int], None] = lambda count: None,
    report: Callable[[dict[str, float]], None] = lambda entry: None,
) -> dict[str, Any]:
    """Train to the end and write the float16 weights of the best epoch; returns their facts.

    Args:
        training: of `start`.
        splits: the task's samples, of "train", "validation", "test".
        advance, report: called after each step with its samples, after each epoch with its entry.
    """
    if not training.finished:
        own, held = (splits(split).to(training.device) for split in ("train", "validation"))
        while not training.finished:
            report(training.epoch(own, held, advance))
    return _finish(training, splits("test"))


def _finish(training: Training, test: Task) -> dict[str, Any]:
    model = training.best_model().to(training.device)
    test = test.to(training.device)
    full = accuracy(model, test)
    state = {key: x.to(torch.float16) for key, x in model.state_dict().items()}
    model.load_state_dict({key: x.to(torch.float32) for key, x in state.items()})
    halved = accuracy(model, test)
    recipe, best = training.recipe, training.best
    facts = {
        **training.facts,
        **asdict(recipe),
        "test_accuracy": halved,
        "test_accuracy_float32": full,
        "test_samples": len(test),
        "accepted": halved >= recipe.accepted,
        "validation_accuracy": best["validation_accuracy"],
        "best_epoch": best["epoch"],
        "epochs": len(training.log),
        "epochs_planned": recipe.epochs,
        "learning_rate": recipe.rate,
        "seconds": round(sum(entry["seconds"] for entry in training.log)),
        "device": training.device.type,
        "torch": str(torch.__version__),
        "relprop": __version__,
        "commit": _commit(),
    }
    write_weights(weights_path(training.folder), state, facts)
    return facts


def _commit() -> str:
    """The commit of the sources, or "" outside of a Git work tree."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
