"""The conservation report: where, on its way down, relevance was absorbed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.tables import table

__all__ = ["ConservationReport", "ConservationRow", "StepRecord"]

_HEADER = ("step", "operation", "module path", "rule", "relevance out", "relevance in", "absorbed")
_NUMBERS = 3


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What one step of a run did with its relevance.

    Attributes:
        step: the step's number in the plan.
        operation: its operation, as the plan prints it.
        path: the module that owns it.
        rule: its rule, as the plan prints it.
        relevance_out: relevance at the operation's output, summed over everything but targets and
            samples, `[K, batch]`.
        relevance_in: relevance handed to all of its inputs, likewise.
    """

    step: int
    operation: str
    path: str
    rule: str
    relevance_out: Tensor
    relevance_in: Tensor

    @property
    def absorbed(self) -> Tensor:
        """Relevance that did not go on, float64 `[K, batch]`; negative where some was added."""
        return self.relevance_out.double() - self.relevance_in.double()


@dataclass(frozen=True, eq=False)
class ConservationRow:
    """One step of the report, summed over targets and samples.

    Attributes:
        loss: sum of |absorbed| over targets and samples, so that samples do not cancel.
        per_sample: what each target of each sample lost here, float64 `[K, batch]`.
    """

    step: int
    operation: str
    path: str
    rule: str
    relevance_out: float
    relevance_in: float
    absorbed: float
    loss: float
    per_sample: Tensor

    @classmethod
    def of(cls, record: StepRecord) -> ConservationRow:
        """The row of a record."""
        per_sample = record.absorbed.cpu()
        return cls(
            record.step,
            record.operation,
            record.path,
            record.rule,
            float(record.relevance_out.double().sum()),
            float(record.relevance_in.double().sum()),
            float(per_sample.sum()),
            float(per_sample.abs().sum()),
            per_sample,
        )

    def cells(self) -> tuple[str, ...]:
        """The row as text, one entry a column."""
        numbers = (self.relevance_out, self.relevance_in, self.absorbed)
        words = (str(self.step), self.operation, self.path, self.rule)
        return words + tuple(f"{number:.6g}" for number in numbers)


@dataclass(frozen=True, eq=False)
class ConservationReport:
    """Relevance in, out and absorbed of every step; prints as a table.

    Attributes:
        rows: one a step, in the order of the run, from the output to the inputs.
    """

    rows: tuple[ConservationRow, ...]

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> ConservationReport:
        """The report of a run."""
        return cls(tuple(map(ConservationRow.of, records)))

    @property
    def worst(self) -> ConservationRow | None:
        """The row with the greatest loss, the first of equals; None without rows.

        A loss that is not a number is the greatest.
        """
        return max(
            self.rows,
            key=lambda row: float("inf") if row.loss != row.loss else row.loss,
            default=None,
        )

    @property
    def total_absorbed(self) -> float:
        """Relevance absorbed by all steps, over all targets and samples."""
        return sum(row.absorbed for row in self.rows)

    @property
    def per_sample(self) -> Tensor:
        """Relevance absorbed by all steps, float64 `[K, batch]`; empty without rows."""
        if not self.rows:
            return torch.zeros(0, 0, dtype=torch.float64)
        return torch.stack([row.per_sample for row in self.rows]).sum(0)

    def __iter__(self) -> Iterator[ConservationRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        worst = self.worst
        if worst is None:
            return "No steps were recorded."
        lines = table(_HEADER, [row.cells() for row in self.rows], _NUMBERS)
        where = f"step {worst.step}, {worst.operation} at {worst.path or 'the model itself'!r}"
        total = f"total absorbed {self.total_absorbed:.6g}; worst {worst.loss:.6g} in {where}"
        return f"{lines}\n{total}"
