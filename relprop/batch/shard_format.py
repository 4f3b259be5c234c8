"""The form of a safetensors shard: where its data begin, its types, its checksum."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

__all__ = ["CODES", "DATA", "DTYPES", "FORMAT", "VERSION", "checksum"]

FORMAT = "relprop.shard"
VERSION = "1"
DATA = 4096
"""Where data begin: the header and the length before it fit in one page."""

DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
CODES = {np.dtype(value): key for key, value in DTYPES.items()}


def checksum(data: bytes, header: dict[str, Any]) -> str:
    """The checksum that a header states of itself and of the data.

    Args:
        data: SHA-256 of all after the header.
        header: the header, its own `sha256` not counted.
    """
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    words = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(data + words.encode()).hexdigest()
