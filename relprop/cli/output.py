"""What the command line writes: relevance, heatmaps, a summary; each file in one step."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop import image
from relprop.atomic import replacing
from relprop.cli.sources import Failed, Item
from relprop.cli.spool import Spool, write_spools
from relprop.explanation import FORMAT, VERSION

__all__ = ["Explained", "Results", "table"]

SHOWN_ROWS = 20
PICTURE_SIDE = 224
COLUMNS = (
    "name", "label", "prediction", "target", "score", "relevance", "delta", "heatmap", "error"
)  # fmt: skip


@dataclass(frozen=True)
class Explained:
    """The explanation of one input; tensors without a batch axis.

    Attributes:
        item: the input.
        relevance: shaped like the input.
        layers: relevance of the hidden layers asked for.
        target: the entry of the output explained, None where the output has one value.
        prediction: the class with the largest output, None where there is no such class.
        score: the output at the target.
        output: the model's whole output.
        delta: start minus sum of relevance.
    """

    item: Item
    relevance: Tensor
    layers: dict[str, Tensor]
    target: int | tuple[int, ...] | None
    prediction: int | None
    score: float
    output: Tensor
    delta: float

    @property
    def total(self) -> float:
        """The sum of the relevance."""
        return float(self.relevance.double().sum())


class Results:
    """Collects explanations and writes them into a folder when the job is done.

    Args:
        folder: made if need be; `relevance.safetensors`, `summary.csv` and `heatmaps/` are
            replaced, other files left alone.
        heatmaps: how many heatmaps to draw at most.
    """

    def __init__(self, folder: Path, heatmaps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.explained = 0
        self.correct = 0
        self.labelled = 0
        self.drawn = 0
        self.failed: list[Failed] = []
        self.rows: list[dict[str, str]] = []
        self._names: list[str] = []
        self._heatmaps = heatmaps
        self._targets: list[Any] = []
        self._spools: dict[str, Spool] = {}

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for spool in self._spools.values():
            spool.close()

    def add(self, result: Explained) -> None:
        """Keep one explanation and draw its heatmap."""
        item = result.item
        self._names.append(item.name)
        self._targets.append(_words(result.target))
        self._spool("relevance:0", result.relevance)
        for path, relevance in result.layers.items():
            self._spool(f"layer:{path}", relevance)
        self._spool("output", result.output.float())
        self._spool("convergence_delta", torch.tensor(result.delta, dtype=torch.float64))
        for key, number in (("prediction", result.prediction), ("label", item.label)):
            self._spool(key, torch.tensor(-1 if number is None else number))
        self.labelled += item.label is not None
        self.correct += item.label is not None and item.label == result.prediction
        self.rows.append({"name": item.name, **_numbers(result), "heatmap": self._draw(result)})
        self.explained += 1

    def fail(self, failed: Failed) -> None:
        """Note an input that could not be explained."""
        self.failed.append(failed)
        self.rows.append(
            {**dict.fromkeys(COLUMNS, ""), "name": failed.name, "error": failed.reason}
        )

    def write(self, method: str, facts: dict[str, str]) -> None:
        """Write the relevance file, with facts about the job in its metadata, and the summary.

        Where all inputs are of one shape, `relprop.Explanation.load` reads the relevance file.
        """
        if self.explained:
            one_shape = self._spools["relevance:0"].uniform
            words = {"method": method, "single": True, "inputs": 1, "steps": []}
            words["layers"] = [name[6:] for name in self._spools if name.startswith("layer:")]
            words["target"] = None if None in self._targets else self._targets
            described = {
                "format": FORMAT if one_shape else "relprop.relevance",
                "version": str(VERSION),
                "explanation": json.dumps(words),
                "names": json.dumps(self._names),
                **facts,
            }
            write_spools(self.folder / "relevance.safetensors", self._spools, described)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with replacing(self.folder / "summary.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def _spool(self, name: str, tensor: Tensor) -> None:
        if name not in self._spools:
            self._spools[name] = Spool(self.folder)
        self._spools[name].append(tensor)

    def _draw(self, result: Explained) -> str:
        if self.drawn >= self._heatmaps or not _is_image(result.relevance):
            return ""
        # The position keeps names apart; only plain characters of the input's name are kept, so
        # that no name leads out of the folder.
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", result.item.name).strip("._")[-80:]
        name = f"heatmaps/{self.explained:05d}-{stem}.png"
        _save_heatmap(self.folder / name, result.item.value, result.relevance)
        self.drawn += 1
        return name


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and tensor.shape[0] in (1, 3) and tensor.numel() > 0


def _save_heatmap(path: Path, value: Tensor, relevance: Tensor) -> None:
    """The input and its heatmap side by side, small ones enlarged to a readable size."""
    low, high = float(value.min()), float(value.max())
    shown = image.grey(value.unsqueeze(0), low, high if high > low else low + 1.0)
    pair = np.concatenate([shown, image.heatmap(relevance.unsqueeze(0))])
    scale = max(1, PICTURE_SIDE // max(pair.shape[1:3]))
    enlarged = pair.repeat(scale, axis=1).repeat(scale, axis=2)
    image.save_png(path, image.grid(enlarged, columns=2, pad=4))


def _words(target: int | tuple[int, ...] | None) -> Any:
    """A target as an Explanation's file has it."""
    return {"tuple": list(target)} if isinstance(target, tuple) else target


def _numbers(result: Explained) -> dict[str, str]:
    """The summary's columns of one explanation."""
    scores = {"score": result.score, "relevance": result.total, "delta": result.delta}
    exact = {"label": result.item.label, "prediction": result.prediction, "target": result.target}
    return {
        **{key: "" if value is None else str(value) for key, value in exact.items()},
        **{key: f"{value:.6g}" for key, value in scores.items()},
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """The first rows of the summary that were explained, in aligned columns."""
    columns = [c for c in COLUMNS if c not in ("heatmap", "error")]
    explained = [row for row in rows if not row.get("error")]
    shown = [[_cut(row[c]) for c in columns] for row in explained[:SHOWN_ROWS]]
    lines = [columns, *shown]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    if len(explained) > SHOWN_ROWS:
        text.append(f"… {len(explained) - SHOWN_ROWS} more in summary.csv")
    return "\n".join(text)


def _cut(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
