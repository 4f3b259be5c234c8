"""The words that a job's options may have."""

from __future__ import annotations

__all__ = ["ENGINES", "FORMATS", "MAX_SHARD_SIZE", "SHARD_SIZE", "STORED"]

ENGINES = ("local", "torchrun", "ray")
FORMATS = ("safetensors", "parquet")
STORED = ("float32", "float16")
SHARD_SIZE = 4096
MAX_SHARD_SIZE = 2**24
