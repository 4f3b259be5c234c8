"""Who works on a job: byte-range locks of one file, which the system drops when a process ends.

POSIX locks serve local disks and most network file systems; they belong to a process, so the file
is opened once in each and stays open.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relprop.errors import RelpropError
from relprop.io.files import printable

__all__ = ["BusyError", "JobLock"]

FILE = "lock"
WHOLE, MAKING, RANKS, SHARDS = 0, 1, 1 << 10, 1 << 32
NOTE_BYTES = 200


class BusyError(RelpropError):
    """Another process works on the job."""


class JobLock:
    """The lock file of a job's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: set[int] = set()  # a process may lock again what it has locked itself
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Drop every lock that this process holds on the job."""
        os.close(self._file)

    def take_job(self) -> None:
        """Work on the job alone.

        Raises:
            BusyError: another process does.
        """
        if not self._take(WHOLE, shared=False):
            raise BusyError(self._busy("another process works on this job"))
        self._note()

    def take_rank(self, rank: int) -> None:
        """Work on the job as one of several ranks.

        Raises:
            BusyError: another process works on it alone, or as this rank.
        """
        if not self._take(WHOLE, shared=True):
            raise BusyError(self._busy("another process works on this job"))
        if not self._take(RANKS + rank, shared=False):
            raise BusyError(self._busy(f"another process works on this job as rank {rank}"))
        self._note()

    def take_shard(self, shard: int) -> bool:
        """Claim one shard; False where another process has it, or this one already."""
        if shard in self._held or not self._take(SHARDS + shard, shared=False):
            return False
        self._held.add(shard)
        return True

    def drop_shard(self, shard: int) -> None:
        """Give a shard back."""
        self._held.discard(shard)
        self._lock(SHARDS + shard, "LOCK_UN")

    @contextmanager
    def making(self) -> Iterator[None]:
        """Alone while the manifest is made or rewritten; waits for its turn."""
        self._lock(MAKING, "LOCK_EX")
        try:
            yield
        finally:
            self._lock(MAKING, "LOCK_UN")

    def _take(self, place: int, shared: bool) -> bool:
        try:
            self._lock(place, "LOCK_SH" if shared else "LOCK_EX", wait=False)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _lock(self, place: int, kind: str, wait: bool = True) -> None:
        try:
            import fcntl
        except ImportError:
            raise RelpropError("jobs need POSIX file locks, which this system lacks") from None
        command = getattr(fcntl, kind) | (0 if wait or kind == "LOCK_UN" else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._file, command, 1, place)
        except (BlockingIOError, PermissionError):
            raise
        except OSError as error:
            raise RelpropError(
                f"{printable(self.folder)}: the file system has no locks ({error.strerror}); put "
                "the job on one that has"
            ) from None

    def _note(self) -> None:
        words = f"process {os.getpid()} on {socket.gethostname()}"
        os.pwrite(self._file, words.encode().ljust(NOTE_BYTES), 0)

    def _busy(self, what: str) -> str:
        note = printable(os.pread(self._file, NOTE_BYTES, 0).decode(errors="replace"), NOTE_BYTES)
        return (
            f"{printable(self.folder)}: {what} ({note}); nothing was changed; wait for it, or give "
            "this one another folder"
        )
