"""What the command line writes: relevance, heatmaps, a summary; each file in one step."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor

from relprop import image
from relprop.atomic import replacing
from relprop.batch.loading import Loaded
from relprop.batch.outputs import SetupError
from relprop.batch.rows import Failure, Rows, little_endian
from relprop.explanation import FORMAT, VERSION
from relprop.image.colours import Pixels
from relprop.tables import aligned

__all__ = ["Results", "table"]

SHOWN_ROWS = 20
PICTURE_SIDE = 224
SHEET_ROWS = 20
SPANS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""What pixels range over; the first that holds an image's values is drawn from black to white."""

SLACK = 1e-4
COLUMNS = (
    "name", "label", "prediction", "target", "class", "score", "relevance", "delta", "heatmap",
    "note", "error",
)  # fmt: skip
FILES_ONLY = ("heatmap", "note", "error")
EXACT = ("label", "prediction", "target")


class Results(ExitStack):
    """Collects explanations and writes them into a folder when all are there.

    Args:
        folder: made if need be; `relevance.safetensors`, `summary.csv`, `sheet.png` and
            `heatmaps/` are replaced, other files left alone.
        heatmaps: how many inputs to draw at most.
        several: whether each input has several explained targets.
        photo: gives an image's pixels as they were before they were normalised.
        classes: the names of classes by their number; none of them, or all.
    """

    def __init__(
        self,
        folder: Path,
        heatmaps: int,
        several: bool,
        photo: Callable[[Tensor], Tensor] = lambda value: value,
        classes: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.explained = 0
        self.failed = 0
        self.correct = 0
        self.labelled = 0
        self.drawn = 0
        self.rows: list[dict[str, str]] = []
        self.sheet = ""
        self._failed: list[dict[str, str]] = []
        self._photo, self._classes = photo, classes or {}
        self._strips: list[list[image.Panel]] = []
        self._names: list[str] = []
        self._heatmaps, self._several = heatmaps, several
        self._targets: list[Any] = []
        self._parts: dict[str, _Part] = {}

    def add(self, loaded: Loaded, rows: Rows | None, failures: list[Failure]) -> None:
        """Keep the explanations of a batch, draw heatmaps, note what failed."""
        if rows is not None:
            self._require_names(rows)
            for row, index in enumerate(rows.index.tolist()):
                place = index - loaded.task.start
                line = self._line(rows, row, loaded.value(place))
                self.rows.append({**line, "note": loaded.notes.get(place, "")})
                self.explained += 1
            self._keep(rows)
        self.failed += len(failures)
        self._failed += [{"name": failure.name, "error": failure.reason} for failure in failures]

    def write(self, method: str, facts: dict[str, str]) -> None:
        """Write the relevance file, with facts about the run in its metadata, summary and sheet.

        In the summary inputs that failed come last.  Where all inputs are of one shape,
        `relprop.Explanation.load` reads the relevance file.
        """
        if self.explained:
            words = {"method": method, "single": True, "inputs": 1, "steps": []}
            words["layers"] = [name[6:] for name in self._parts if name.startswith("layer:")]
            words["target"] = "tensor" if self._several else self._targets
            if -1 in self._targets:  # the output has one value
                words["target"] = None
            one_shape = self._parts["relevance:0"].uniform
            described = {
                "format": FORMAT if one_shape else "relprop.relevance",
                "version": str(VERSION),
                "explanation": json.dumps(words),
                "names": json.dumps(self._names),
                **facts,
            }
            arrays: dict[str, np.ndarray] = {}
            for name, part in self._parts.items():
                arrays |= part.arrays(name)
            with replacing(self.folder / "relevance.safetensors") as temporary:
                save_file(arrays, temporary, described)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*self.rows, *self._failed])
        with replacing(self.folder / "summary.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
        if self._strips and importlib.util.find_spec("matplotlib") is not None:
            self.sheet = image.save_sheet(self._strips, self.folder / "sheet.png").name
        elif self._strips:
            self.sheet = "no sheet.png without Matplotlib: pip install 'relprop[figures]'"

    def _require_names(self, rows: Rows) -> None:
        """Names of other classes than the model's would be worse than none."""
        output = rows.more["output"][0] if self._classes else None
        if output is not None and set(self._classes) != set(range(len(output))):
            raise SetupError(
                f"--classes: {len(self._classes)} names, of classes {min(self._classes)} to "
                f"{max(self._classes)}, for an output of {len(output)}; expected one name a class"
            )

    def _keep(self, rows: Rows) -> None:
        columns, targets = rows.columns, rows.columns["target"]
        self._names += rows.names
        entries = targets.tolist()
        assert rows.relevance is not None
        found = {"relevance:0": rows.relevance, **rows.more}
        found["convergence_delta"] = columns["delta"].double()
        found |= {name: columns[name] for name in ("prediction", "label")}
        if self._several:
            found["target"] = targets
        elif targets.ndim == 1:
            self._targets += entries
        else:  # positions in an output of several axes, as an Explanation's file has them
            self._targets += [{"tuple": entry} for entry in entries]
        for name, values in found.items():
            if name not in self._parts:
                stream = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed with self
                self._parts[name] = _Part(self.enter_context(stream))
            self._parts[name].append(values)
        labelled = columns["label"] >= 0
        self.labelled += int(labelled.sum())
        self.correct += int((labelled & (columns["label"] == columns["prediction"])).sum())

    def _line(self, rows: Rows, row: int, value: Tensor) -> dict[str, str]:
        """The summary's line of one explanation."""
        assert rows.relevance is not None
        relevance = rows.relevance[row]
        own = {name: column[row] for name, column in rows.columns.items()}
        maps = relevance if self._several else relevance.unsqueeze(0)
        scores = {"score": own["score"], "relevance": maps.double().flatten(1).sum(1)}
        scores["delta"] = own["delta"]
        return {
            "name": rows.names[row],
            **{key: self._exact(own[key]) for key in EXACT},
            "class": "; ".join(filter(None, self._class_names(own["target"]))),
            **{key: _floats(values) for key, values in scores.items()},
            "heatmap": self._draw(rows.names[row], value, maps, own),
        }

    def _class_names(self, target: Tensor) -> list[str]:
        """The name of each target that is a class; empty words where there is none."""
        numbers = target.reshape(-1).tolist() if self._several or not target.ndim else []
        return [self._classes.get(number, "") for number in numbers]

    def _titles(self, own: dict[str, Tensor]) -> list[str]:
        """Class and score of each target."""
        names, targets = self._class_names(own["target"]), self._exact(own["target"])
        numbers = targets.split() if self._several else [targets]
        words = [f"class {number}" if number else "output" for number in numbers]
        named = [name or word for name, word in zip_longest(names, words, fillvalue="")]
        return [
            f"{word}\n{score:.4g}"
            for word, score in zip(named, own["score"].reshape(-1).tolist(), strict=True)
        ]

    def _exact(self, value: Tensor) -> str:
        """Whole numbers: a class, one of each target, or the position of an entry."""
        numbers = value.tolist()
        if isinstance(numbers, int):
            return "" if numbers == -1 else str(numbers)
        return " ".join(map(str, numbers)) if self._several else str(tuple(numbers))

    def _draw(self, name: str, value: Tensor, maps: Tensor, own: dict[str, Tensor]) -> str:
        if self.drawn >= self._heatmaps or not _is_image(maps[0]):
            return ""
        # The position keeps names apart; only plain characters of the input's name are kept, so
        # that no name leads out of the folder.
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[-80:]
        path = f"heatmaps/{self.explained:05d}-{stem}.png"
        pictures = _pictures(self._photo(value.detach().cpu()), maps)
        _save_heatmap(self.folder / path, pictures)
        if self.drawn < SHEET_ROWS:
            label = int(own["label"])
            titles = [name, self._classes.get(label, f"label {label}")][: 1 + (label >= 0)]
            every = zip(["\n".join(titles), *self._titles(own)], pictures, strict=True)
            self._strips.append([image.Panel(title, image.shrunk(one)) for title, one in every])
        self.drawn += 1
        return path


class _Part:
    """Tensors of one kind, appended to a temporary file: memory stays small."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shapes: list[tuple[int, ...]] = []

    def append(self, rows: Tensor | list[Tensor]) -> None:
        """Add one tensor a sample."""
        for row in rows:
            array = little_endian(row)
            self._dtype = array.dtype
            self._stream.write(array.tobytes())
            self._shapes.append(array.shape)

    @property
    def uniform(self) -> bool:
        """Whether all tensors have one shape."""
        return len(set(self._shapes)) == 1

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All of them, mapped: one array with a new first axis, or `name.000000`, `name.000001`."""
        self._stream.flush()
        ends = np.cumsum([0, *(math.prod(shape) for shape in self._shapes)])
        whole = np.memmap(self._stream, self._dtype, "r") if ends[-1] else np.zeros(0, self._dtype)
        if self.uniform:
            return {name: whole.reshape(len(self._shapes), *self._shapes[0])}
        return {
            f"{name}.{i:06d}": whole[ends[i] : ends[i + 1]].reshape(shape)
            for i, shape in enumerate(self._shapes)
        }


def _floats(values: Tensor) -> str:
    return " ".join(f"{value:.6g}" for value in values.reshape(-1).tolist())


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and tensor.shape[0] in (1, 3) and tensor.numel() > 0


def _pictures(photo: Tensor, maps: Tensor) -> Pixels:
    """The input and its heatmaps."""
    low, high = float(photo.min()), float(photo.max())
    inside = (s for s in SPANS if s[0] - SLACK <= low and high <= s[1] + SLACK)
    low, high = next(inside, (low, high if high > low else low + 1.0))
    return np.concatenate([image.grey(photo.unsqueeze(0), low, high), image.heatmap(maps)])


def _save_heatmap(path: Path, pictures: Pixels) -> None:
    """Pictures side by side, small ones enlarged to a readable size."""
    scale = max(1, PICTURE_SIDE // max(pictures.shape[1:3]))
    enlarged = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    image.save_png(path, image.grid(enlarged, columns=len(pictures), pad=4))


def table(rows: Sequence[dict[str, str]]) -> str:
    """The first rows of what was explained, in aligned columns."""
    named = any(row["class"] for row in rows[:SHOWN_ROWS])
    columns = [c for c in COLUMNS if c not in FILES_ONLY and (c != "class" or named)]
    shown = [[_cut(row[c]) for c in columns] for row in rows[:SHOWN_ROWS]]
    text = aligned([columns, *shown], len(columns) - 1)
    if len(rows) > SHOWN_ROWS:
        text.append(f"… {len(rows) - SHOWN_ROWS} more in summary.csv")
    return "\n".join(text)


def _cut(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
