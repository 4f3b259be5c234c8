"""Backends evaluate the steps of a plan: linear layers by their rule, operations as they say.

`relprop.operations.protocol` says what a backend is; here they are found by name.
"""

from __future__ import annotations

from relprop.errors import InputError
from relprop.operations.protocol import PRECISIONS, Backend, Fusing, LinearCall

__all__ = ["PRECISIONS", "Backend", "Fusing", "LinearCall", "get"]


def get(name: str) -> Backend:
    """The backend of that name.

    Raises:
        InputError: no backend has that name.
    """
    match name:
        case "aten":
            from relprop.backends.aten.backend import AtenBackend

            return AtenBackend()
        case "reference":
            from relprop.backends.reference.backend import ReferenceBackend

            return ReferenceBackend()
        case "triton":
            from relprop.backends.triton.backend import TritonBackend

            return TritonBackend()
    raise InputError(f"backend is {name!r}; expected 'aten', 'reference' or 'triton'")
