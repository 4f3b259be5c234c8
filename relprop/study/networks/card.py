"""Put trained weights among the shipped ones: `python -m relprop.study.networks.card out/train`.

Copies every finished training's weights into the package and writes the model card's table anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relprop import models
from relprop.atomic import replacing
from relprop.errors import FileFormatError, RelpropError
from relprop.study.networks.registry import TITLES, describe, load, pairs, weights_file
from relprop.study.networks.training import ACCEPTED, weights_path

__all__ = ["ACCURACY", "card", "ship", "table"]

BEGIN, END = "<!-- study: begin -->\n", "<!-- study: end -->\n"

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
"""The test accuracy that the study reported, mean over seven folds, by (task, model).

P. Chormai, "Designing Recurrent Neural Networks for Explainability", TU Berlin 2018.
"""

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

REPORTED = {**ACCURACY, **ACCURACY_SINGLE}
"""The study's own test accuracies by (task, model)."""

HEAD = (
    "| network | task | test accuracy | before float16 | reported | seed | best epoch "
    "| device | commit |\n|---|---|---|---|---|---|---|---|---|\n"
)

FLAGS = "compiled", "mixed"
"""How a network may have been trained, beside plain float32."""

SEEN = {
    ("r_lstm_sd", "fashion_mnist_maj", "76efb72ae5"): (10, 0.8990),
    ("deep", "mnist", "073b696af8"): (30, 0.9776),
    ("deep_v2", "mnist", "073b696af8"): (30, 0.9738),
    ("shallow", "mnist", "37b510e966"): (10, 0.9783),
    ("conv_deep", "fashion_mnist", "7de3f665ed"): (10, 0.9107),
    ("conv_r_lstm_sd", "fashion_mnist_maj", "b4125ec0fd"): (10, 0.9235),
    ("shallow", "mnist_maj", "bc15f002d2"): (10, 0.9598),
    ("deep", "fashion_mnist_maj", "b1f2312a0c"): (20, 0.8769),
    ("deep_v2", "fashion_mnist_maj", "202265a61e"): (22, 0.8943),
    ("deep", "mnist_maj", "084f878447"): (24, 0.9742),
    ("shallow", "fashion_mnist_maj", "202265a61e"): (14, 0.8850),
}
"""Of trainings (model, task, commit) whose epochs were chosen in sight of a test accuracy: the
epochs before, and the accuracy that they had given."""


def table(facts: Sequence[Mapping[str, Any]]) -> str:
    """The model card's table of trainings' facts, in Markdown, and the remarks on its rows."""
    order = list(ACCEPTED), list(TITLES)
    rows = sorted(facts, key=lambda f: (order[0].index(f["task"]), order[1].index(f["model"])))
    return HEAD + "".join(map(_row, rows)) + "".join(map(_remark, rows))


def _remark(facts: Mapping[str, Any]) -> str:
    seen = SEEN.get((facts["model"], facts["task"], facts["commit"]))
    if seen is None:
        return ""
    words = (
        f"{TITLES[facts['model']]} on `{facts['task']}`: its number of epochs, "
        f"{facts['epochs_planned']}, was chosen after {seen[0]} epochs had given {seen[1]:.4f} on "
        "the same test samples, so its accuracy is not that of samples never looked at."
    )
    return f"\n{textwrap.fill(words, 100)}\n"


def _row(facts: Mapping[str, Any]) -> str:
    reported = REPORTED.get((facts["task"], facts["model"]))
    shown = [
        TITLES[facts["model"]],
        f"`{facts['task']}`",
        f"{facts['test_accuracy']:.4f}" + ("" if facts["accepted"] else " (below accepted)"),
        f"{facts['test_accuracy_float32']:.4f}",
        "–" if reported is None else f"{reported:.3f}",
        str(facts["seed"]),
        f"{facts['best_epoch']} of {facts['epochs_planned']}{_variations(facts)}",
        ", ".join([facts["device"], *(flag for flag in FLAGS if facts.get(flag))]),
        facts["commit"] or "–",
    ]
    return f"| {' | '.join(shown)} |\n"


def _variations(facts: Mapping[str, Any]) -> str:
    """In what a training was not the usual one."""
    first, batch, start = (facts.get(key) for key in ("dropout_from", "batch", "start_from"))
    last = facts.get("dropout_until")
    said = f", dropout from {first}" if first and first > 1 else ""
    said += f", dropout until {last}" if last else ""
    said += f", batches of {batch}" if batch and batch != 50 else ""
    return said + (f", started from {TITLES[start]}" if start else "")


def card(text: str, rows: str) -> str:
    """A model card with its table between the two marks replaced.

    Raises: FileFormatError where the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FileFormatError(
            f"the model card lacks the marks {BEGIN.strip()} and {END.strip()}; put them on lines "
            "of their own where the table is to stand"
        )
    return before + begin + rows + end + after


def ship(trained: Path) -> list[Path]:
    """Copy the weights of the trainings in a folder into the package, and renew the card.

    Raises: FileFormatError where there is no such folder, weights cannot be read, or the card has
    no place for the table.
    """
    if not trained.is_dir():
        raise FileFormatError(f"{trained}: no such folder; expected the --out of `relprop train`")
    copied = []
    for path in sorted(trained.glob(f"*/{weights_path(Path()).name}")):
        name, _, task = path.parent.name.partition("-")
        load(name, task, path)
        with replacing(weights_file(name, task)) as temporary:
            shutil.copyfile(path, temporary)
        copied.append(weights_file(name, task))
    readme = models.FOLDER / "README.md"
    renewed = card(readme.read_text(encoding="utf-8"), table([describe(*p) for p in pairs()]))
    with replacing(readme) as temporary:
        temporary.write_text(renewed, encoding="utf-8")
    return copied


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m relprop.study.networks.card", description=__doc__
    )
    parser.add_argument("trained", type=Path, help="the --out folder of relprop train")
    try:
        for path in ship(parser.parse_args(arguments).trained):
            print(path)
    except (RelpropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
