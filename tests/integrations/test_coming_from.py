"""The pages "coming from ...": every Python snippet runs, in order, in one namespace a page."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES: dict[str, tuple[str | None, int]] = {
    "captum": ("captum", 3),
    "innvestigate": (None, 2),
    "quantus": (None, 4),
    "zennit": ("zennit", 5),
}
"""The peer that every snippet of a page needs, and how many snippets it has."""

_SNIPPET = re.compile(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_snippets(page: str) -> None:
    """Peers are optional: that a snippet needs one which is not installed is reported."""
    needed, count = PAGES[page]
    name = f"coming-from-{page}.md"
    snippets = _SNIPPET.findall((DOCS / name).read_text(encoding="utf-8"))
    assert len(snippets) == count
    missing = set()
    namespace: dict[str, Any] = {"__name__": page}
    for number, (peer, code) in enumerate(snippets, 1):
        wanted = peer or needed
        if wanted and importlib.util.find_spec(wanted) is None:
            missing.add(wanted)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, f"{name}, snippet {number}", "exec"), namespace)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
