"""Mutants that no test can tell from the source, each with the reason."""

from __future__ import annotations

ARGUED: dict[str, str] = {}
