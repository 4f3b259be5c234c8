"""Modules of an older version under the names that they have in this one, for `make bench BASE=…`.

Before the rooms (up to 5d0652a) they lay flat.  A version that has rooms is left alone.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["ALIASES", "alias"]

ALIASES = {
    "relprop.rules.terms": "relprop.terms",
    "relprop.graph.maps": "relprop.maps",
    "relprop.graph.recurrent": "relprop.recurrent.layout",
    "relprop.backends.reference.linear": "relprop.reference",
    "relprop.backends.aten.recurrent.stack": "relprop.recurrent.aten",
    "relprop.operations.recurrent": "relprop.layers.recurrent",
    "relprop.engine.plan": "relprop.plan",
    "relprop.engine.run": "relprop.run",
    "relprop.study.networks": "relprop.models.study",
}
"""What benchmarks import of the rooms: today's name, and the one before the rooms."""


def alias() -> None:
    """Let the names of today import what an older version has under another name."""
    relprop = importlib.import_module("relprop")
    # the finder of an editable install would find this version's rooms in the older one
    if Path(relprop.__file__ or "").with_name("engine").is_dir():
        return
    for today, before in ALIASES.items():
        module = importlib.import_module(before)
        sys.modules[today] = module
        room, _, name = today.rpartition(".")
        # `from relprop.study import networks` asks the room, which may not be there at all
        sys.modules.setdefault(room, ModuleType(room))
        setattr(sys.modules[room], name, module)
