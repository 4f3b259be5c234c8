"""Shared memory: who read and who wrote each of its words since the last barrier.

Threads are ordered only by barriers.  So a word that one warp wrote, another may neither read nor
write before the next one; nor may a warp write what another has read.  What runs on by itself keeps
its words until a wait: those a `cp.async` is to fill may not be touched, those a `wgmma` reads may
not be written.  After the wait they count as written, and read, by the warps that had asked.
"""

from __future__ import annotations

import numpy as np

from ptx.text import PtxError
from ptx.values import Array

__all__ = ["BASE", "SharedMemory"]

BASE = 1024
"""The address of the first byte."""
NOBODY, SEVERAL = -1, -2


class SharedMemory:
    """That of some CTAs in lockstep, filled with the bits of NaN at first.

    Args:
        ctas: how many.
        size: bytes of each.
        word: bytes of the narrowest access of the kernel, at most 4.
    """

    def __init__(self, ctas: int, size: int, word: int = 4) -> None:
        self.size, self.word = size, word
        words = (ctas, size // word)
        self.octets = np.full((ctas, size), 0xFF, np.uint8)
        self.writer, self.reader = (np.full(words, NOBODY, np.int16) for _ in range(2))
        self.filling, self.reading = (np.zeros(words, np.int32) for _ in range(2))
        self.unfenced = np.zeros(words, bool)
        self.filled = self.read = 0  # the last groups of cp.async and wgmma that are complete
        self.asked = 0  # the last group of cp.async that was asked for

    def take(self, chosen: Array) -> SharedMemory:
        """That of some of the CTAs."""
        part = SharedMemory(0, self.size, self.word)
        part.filled, part.read, part.asked = self.filled, self.read, self.asked
        for name in ("octets", "writer", "reader", "filling", "reading", "unfenced"):
            setattr(part, name, getattr(self, name)[chosen])
        return part

    def places(self, addresses: Array, size: int, what: str) -> Array:
        """Offsets of addresses at which `size` bytes may be accessed."""
        offsets = addresses.astype(np.int64) - BASE
        if ((offsets < 0) | (offsets + size > self.size)).any():
            raise PtxError(f"{what} outside the {self.size} bytes of shared memory")
        if (offsets % size).any():
            raise PtxError(f"misaligned {size}-byte {what} in shared memory")
        return offsets

    def load(self, ctas: Array, addresses: Array, size: int, warps: Array, what: str) -> Array:
        """`[threads, size]` octets, read by those warps."""
        offsets = self.places(addresses, size, what)
        at = self._words(ctas, offsets, size)
        self._refuse_unfinished(at, what)
        self._refuse_others(self.writer[at], warps[:, None], what, "wrote")
        self._note_reader(at, warps[:, None])
        found = self.octets.view(f"V{size}")[ctas, offsets // size]
        return found.view(np.uint8).reshape(-1, size)

    def store(
        self, ctas: Array, addresses: Array, octets: Array, warps: Array, what: str
    ) -> None:  # fmt: skip
        """Write `[threads, size]` octets by those warps."""
        size = octets.shape[1]
        offsets = self.places(addresses, size, what)
        self.claim(ctas, offsets, size, warps, what)
        self.put(ctas, offsets, octets, warps, what)

    def claim(self, ctas: Array, offsets: Array, size: int, warps: Array, what: str) -> None:
        """Refuse a write that is not ordered after what others did."""
        at = self._words(ctas, offsets, size)
        self._refuse_unfinished(at, what)
        if (self.reading[at] > self.read).any():
            raise PtxError(f"race: {what} of a word that a wgmma in flight reads")
        self._refuse_others(self.writer[at], warps[:, None], what, "wrote")
        self._refuse_others(self.reader[at], warps[:, None], what, "read")

    def put(self, ctas: Array, offsets: Array, octets: Array, warps: Array, what: str) -> None:
        """Write where that was found to be in order."""
        size = octets.shape[1]
        at = self._words(ctas, offsets, size)
        whole, places = self.octets.view(f"V{size}"), (ctas, offsets // size)
        wanted = np.ascontiguousarray(octets).view(f"V{size}")[:, 0]
        whole[places] = wanted
        self.writer[at] = np.broadcast_to(warps[:, None], at[1].shape)
        self.unfenced[at] = True
        if (self.writer[at] != warps[:, None]).any() and (whole[places] != wanted).any():
            raise PtxError(f"race: {what} of different values by two warps to one word")

    def fill(self, ctas: Array, offsets: Array, size: int, warps: Array, group: int) -> None:
        """From here on a copy of a group of cp.async may land."""
        self.claim(ctas, offsets, size, warps, "cp.async")
        self.filling[self._words(ctas, offsets, size)] = self.asked = group

    def read_by_product(self, ctas: Array, offsets: Array, size: int, group: int) -> Array:
        """`[..., size]` octets that a group of wgmma reads from now until it is waited for."""
        at = np.broadcast_to(ctas, offsets.shape), offsets // self.word
        self._refuse_unfinished(at, "wgmma")
        if (self.writer[at] != NOBODY).any():
            raise PtxError("race: wgmma of a word that a warp wrote since the last barrier")
        if self.unfenced[at].any():
            raise PtxError("wgmma of a word that no fence.proxy.async has made visible to it")
        self.reading[at] = group
        return self.octets[ctas[..., None], offsets[..., None] + np.arange(size)]

    def complete_fills(self, group: int) -> None:
        self.filled = max(self.filled, group)

    def complete_products(self, group: int) -> None:
        if group > self.read:
            self.reader[(self.reading > self.read) & (self.reading <= group)] = SEVERAL
            self.read = group

    def barrier(self) -> None:
        """All warps have come here."""
        self.writer.fill(NOBODY)
        self.reader.fill(NOBODY)

    def fence(self) -> None:
        """What threads stored can be seen by wgmma."""
        self.unfenced.fill(False)

    def _words(self, ctas: Array, offsets: Array, size: int) -> tuple[Array, Array]:
        words = (offsets // self.word)[:, None] + np.arange(max(1, size // self.word))
        return np.broadcast_to(ctas[:, None], words.shape), words

    def _refuse_unfinished(self, at: tuple[Array, Array], what: str) -> None:
        if self.asked > self.filled and (self.filling[at] > self.filled).any():
            raise PtxError(f"race: {what} of a word that a cp.async in flight fills")

    def _refuse_others(self, before: Array, warps: Array, what: str, did: str) -> None:
        if ((before != NOBODY) & (before != warps)).any():
            raise PtxError(f"race: {what} of a word that another warp {did} since the last barrier")

    def _note_reader(self, at: tuple[Array, Array], warps: Array) -> None:
        before = self.reader[at]
        noted = np.where((before == NOBODY) | (before == warps), warps, SEVERAL)
        self.reader[at] = noted
        several = self.reader[at] != noted  # several warps in this very instruction
        if several.any():
            self.reader[at[0][several], at[1][several]] = SEVERAL
