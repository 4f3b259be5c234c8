"""The pages "coming from ...": every Python snippet runs, in order, in one namespace a page."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {
    "coming-from-captum.md": ("captum", 3),
    "coming-from-innvestigate.md": (None, 2),
    "coming-from-quantus.md": (None, 4),
}
"""The peer that a whole page needs, and how many snippets it has."""

_SNIPPET = re.compile(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_snippets(page: str) -> None:
    needed, count = PAGES[page]
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    snippets = _SNIPPET.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(snippets) == count
    namespace: dict[str, Any] = {}
    for peer, code in snippets:
        if peer and importlib.util.find_spec(peer) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, page, "exec"), namespace)
