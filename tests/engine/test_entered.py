"""How far a reader walks: files that one explanation enters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").exists())


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize(
    ("work", "most"), [("first_cnn", 40), ("cached_cnn", 20), ("first_lstm", 42)]
)
def test_an_explanation_enters_few_files(work: str, most: int) -> None:
    from benchmarks import entered

    files = getattr(entered, work)()
    assert 10 < len(files) <= most, files
    assert sys.getprofile() is None
