"""Single images of both data sets under the study's seven methods, explained by ConvDeep at T = 1.

Run `python -m figures.single_images`: writes single_images.png and single_images.pdf beside this
file.  Of every class named, the test image with the lowest index that the network classifies
correctly.
"""

from __future__ import annotations

from pathlib import Path

import torch

from figures.common import Places, lowest, run
from relprop import data, image
from relprop.study.evaluation import LABELS, Explained
from relprop.study.evaluation.reported import TITLES

MODEL = "conv_deep"
CLASSES = {"mnist": (0, 3, 4, 7), "fashion_mnist": (0, 5, 8, 9)}


def draw(places: Places) -> list[Path]:
    """Draw the figure; returns its files, none where a network is missing."""
    networks = {task: places.networks(task, [MODEL]).get(MODEL) for task in CLASSES}
    inputs, names, groups = [], [], []
    maps: dict[str, list[torch.Tensor]] = {method: [] for method in LABELS}
    for task, network in networks.items():
        if network is None:
            continue
        samples = places.task(task)
        chosen = lowest(samples, [network], CLASSES[task])
        images, labels, _ = samples.batch(torch.tensor(chosen))
        places.tell(task, chosen)
        _, relevance = Explained(network, MODEL)(images, labels)
        for method, found in relevance.items():
            maps[method].append(found)
        inputs.append(images)
        names += [data.class_names(task)[label] for label in labels.tolist()]
        groups.append((TITLES[task], len(chosen)))
    if not inputs:
        return []
    return list(
        image.heatmap_figure(
            [(LABELS[method], torch.cat(found)) for method, found in maps.items()],
            names,
            inputs=torch.cat(inputs),
            path=places.out / "single_images",
            column_groups=groups,
        )
    )


if __name__ == "__main__":
    run(draw, __doc__)
