"""Majority tasks: five architectures under four methods, three samples of each data set.

Run `python -m figures.majority`: writes majority.png and majority.pdf beside this file.  Of every
class named, the test sample with the lowest index that all networks shown classify correctly.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from figures.common import Places, lowest, run
from relprop import data, image
from relprop.study import networks as study
from relprop.study.evaluation import LABELS, Explained
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.reported import TITLES

MODELS = ("conv_deep", "conv_plus_deep", "r_lstm_sd", "conv_r_lstm_sd", "conv_plus_r_lstm_sd")
CLASSES = {"mnist_maj": (1, 9, 0), "fashion_mnist_maj": (5, 7, 5)}
CELL_INCHES = 0.95


def draw(places: Places) -> list[Path]:
    """Draw the figure with the architectures trained on both tasks; returns its files."""
    networks = {task: places.networks(task, MODELS) for task in CLASSES}
    models = [model for model in MODELS if all(model in own for own in networks.values())]
    for model in set(MODELS) - set(models):
        if any(model in own for own in networks.values()):
            print(f"missing: {study.TITLES[model]} is trained for one task alone, left out")
    if not models:
        return []
    inputs, names = [], []
    maps: dict[tuple[str, str], list[Tensor]] = {(m, a): [] for m in TABLE for a in models}
    for task, own in networks.items():
        shown = {model: own[model] for model in models}
        samples = places.task(task)
        chosen = lowest(samples, shown.values(), CLASSES[task])
        places.tell(task, chosen)
        images, labels, _ = samples.batch(torch.tensor(chosen))
        for model, network in shown.items():
            _, relevance = Explained(network, model, TABLE)(images, labels)
            for method, found in relevance.items():
                maps[method, model].append(found)
        inputs.append(images)
        names += [data.class_names(task.removesuffix("_maj"))[k] for k in labels.tolist()]
    return list(
        image.heatmap_figure(
            [(study.TITLES[model], torch.cat(found)) for (_, model), found in maps.items()],
            names,
            inputs=torch.cat(inputs),
            path=places.out / "majority",
            row_groups=[(LABELS[method], len(models)) for method in TABLE],
            column_groups=[(TITLES[task], len(own)) for task, own in CLASSES.items()],
            cell_inches=CELL_INCHES,
        )
    )


if __name__ == "__main__":
    run(draw, __doc__)
