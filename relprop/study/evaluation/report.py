"""The table in print: measured beside reported, and why they differ where they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from relprop.study import networks as study
from relprop.study.evaluation.cells import Cell, Setting
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.reported import (
    COSINE,
    REFERENCES,
    SHORT,
    TITLES,
    known_cause,
)
from relprop.study.networks.card import ACCURACY
from relprop.tables import aligned

__all__ = ["ordering", "reasons", "report"]

NEAR = {"sensitivity": 0.08, "guided_backprop": 0.08}
"""How far from a reported similarity still counts as the same; 0.05 for the other methods."""

NEAR_ACCURACY = 0.01
ORDER = ("deep", "conv_deep", "r_lstm", "r_lstm_sd")
"""Architectures whose similarities by LRP-α1.5β0.5 rise in this order in the study."""

TIE = 0.02
_ORDERED_BY = "lrp_alpha1.5_beta0.5"


def report(cells: Mapping[Setting, Cell | str]) -> str:
    """The table of cells, or of why there is none, by task: text of several paragraphs."""
    tasks = dict.fromkeys(setting.task for setting in cells)
    parts = [_of_task(task, {s: c for s, c in cells.items() if s.task == task}) for task in tasks]
    return "\n\n".join([*parts, _footer(cells)])


def _of_task(task: str, cells: Mapping[Setting, Cell | str]) -> str:
    measured = {s: c for s, c in cells.items() if isinstance(c, Cell)}
    lines = [TITLES[task], *_similarities(measured), *_remarks(task, cells)]
    if task in {known for known, _ in COSINE}:
        lines += ["", ordering(measured)]
    return "\n".join([*lines, *_shares(measured)])


def _similarities(cells: Mapping[Setting, Cell]) -> list[str]:
    """Rows of numbers: after each measured value the reported one in brackets."""
    if not cells:
        return ["  no trained network to measure"]
    head = ["", "accuracy", *(SHORT[key] for key in TABLE)]
    return _aligned([head, *([study.TITLES[s.model], *_numbers(s, c)] for s, c in cells.items())])


def _shares(cells: Mapping[Setting, Cell]) -> list[str]:
    if not cells:
        return []
    head = ["", *(SHORT[key] for key in TABLE)]
    rows = [
        [study.TITLES[s.model], *(f"{100 * cell.share[key]:.1f} %" for key in TABLE)]
        for s, cell in cells.items()
    ]
    return ["", "  relevance in the right blocks, median", *_aligned([head, *rows])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows)]


def _numbers(setting: Setting, cell: Cell) -> Iterator[str]:
    key = (setting.task, setting.model)
    yield _beside(cell.accuracy, ACCURACY.get(key))
    for method in TABLE:
        yield _beside(cell.cosine[method], COSINE.get(key, {}).get(method))


def _beside(value: float, reported: float | None) -> str:
    return f"{value:.3f} ({'–' if reported is None else f'{reported:.3f}'})"


def _remarks(task: str, cells: Mapping[Setting, Cell | str]) -> list[str]:
    lines = []
    for setting, cell in cells.items():
        said = [cell] if isinstance(cell, str) else reasons(setting, cell)
        name = study.TITLES[setting.model]
        lines += [f"  {name}: {text}" for text in said]
    return ["", *lines] if lines else []


def reasons(setting: Setting, cell: Cell) -> list[str]:
    """For each group of values that differ from the reported ones, by how much and why."""
    reported = COSINE.get((setting.task, setting.model))
    if reported is None:
        return ["nothing was reported of it"]
    found: dict[str, list[str]] = {}
    for method in TABLE:
        difference = cell.cosine[method] - reported[method]
        cause = known_cause(setting.model, method)
        far = abs(difference) > NEAR.get(method, 0.05)
        if far or cause:
            why = cause or _unknown(setting, cell)
            found.setdefault(why, []).append(f"{SHORT[method]} {difference:+.3f}")
    accuracy = ACCURACY.get((setting.task, setting.model))
    if accuracy is not None and abs(cell.accuracy - accuracy) > NEAR_ACCURACY:
        change = f"accuracy {cell.accuracy - accuracy:+.3f}"
        found.setdefault(_unknown(setting, cell), []).append(change)
    return [f"{', '.join(changes)}: {why}" for why, changes in found.items()]


def _unknown(setting: Setting, cell: Cell) -> str:
    """What is different here, where nothing is known to be wrong in the original."""
    few = setting.split == "sample" or setting.samples < 10_000
    some = f"; {setting.samples} samples here, 10,000 there" if few else ""
    other = study.TITLES.get(cell.start_from, cell.start_from)
    first = f" that began with {other}'s weights" if other else ""
    return (
        f"one training here{first}, the mean of seven there{some}; no error is known on either side"
    )


def ordering(cells: Mapping[Setting, Cell]) -> str:
    """Whether similarities by LRP-α1.5β0.5 rise from Deep to R-LSTM-SD, as reported."""
    values = {s.model: c.cosine[_ORDERED_BY] for s, c in cells.items() if s.model in ORDER}
    shown = [model for model in ORDER if model in values]
    chain = " < ".join(f"{study.TITLES[m]} {values[m]:.3f}" for m in shown)
    missing = [study.TITLES[model] for model in ORDER if model not in values]
    if missing:
        return f"  order by {SHORT[_ORDERED_BY]}: not to be told without {', '.join(missing)}"
    rising = all(values[a] < values[b] + TIE for a, b in pairwise(shown))
    verdict = "holds" if rising else "does not hold"
    return f"  order by {SHORT[_ORDERED_BY]} (ties within {TIE}): {chain}: {verdict}"


def _footer(cells: Mapping[Setting, Cell | str]) -> str:
    measured = [cell for cell in cells.values() if isinstance(cell, Cell)]
    lines = [
        "mean cosine similarity of the blocks' relevance to the right blocks (reported value in "
        "brackets)",
        "of explanations that know nothing: "
        + ", ".join(f"{name} {value:.4f}" for name, value in REFERENCES.items()),
    ]
    if measured:
        samples = _several(cell.setting.samples for cell in measured)
        splits = _several(cell.setting.split for cell in measured)
        lines.append(f"{len(measured)} of {len(cells)} cells, {samples} samples of split {splits}")
        lines += _conservation(measured)
    return "\n".join(lines)


def _conservation(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for dtype in dict.fromkeys(cell.setting.dtype for cell in cells):
        errors = [
            (error, f"{study.TITLES[c.setting.model]}, {TITLES[c.setting.task]}, {SHORT[method]}")
            for c in cells
            if c.setting.dtype == dtype
            for method, error in c.conservation.items()
        ]
        worst, where = max(errors)
        lines.append(
            f"conservation in {dtype}: |ΣR − relu(y)| / max(1, relu(y)) is at most {worst:.1e} "
            f"({where})"
        )
    return lines


def _several(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
