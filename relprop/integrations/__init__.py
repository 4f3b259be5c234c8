"""Other libraries' interfaces on relprop's engine: Captum, Zennit, Quantus.

Nothing of a peer is imported until its module here is: `relprop.integrations.captum`,
`relprop.integrations.zennit` and `relprop.integrations.quantus` load on first use.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["captum", "peer", "quantus", "zennit"]

_MODULES = ("captum", "quantus", "zennit")


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def peer(module: str, extra: str) -> ModuleType:
    """A module of an optional peer.

    Args:
        module: its full name, such as "captum.attr".
        extra: the extra of relprop that installs the peer, such as "captum".

    Raises:
        ModuleNotFoundError: the peer is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"relprop.integrations.{extra} needs the package {module.partition('.')[0]!r}, which "
            f"is not installed; install it with: pip install 'relprop[{extra}]'",
            name=error.name,
        ) from None
