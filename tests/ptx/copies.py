"""`cp.async`: copies from global to shared memory that land when they are waited for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.access import chosen_of
from ptx.machine import Ctas, instruction
from ptx.shared import BASE
from ptx.text import Instruction, PtxError
from ptx.values import Array


@dataclass(frozen=True)
class Copy:
    """A copy of `size` octets by each of some threads, 0 behind the first `given`."""

    threads: Array
    targets: Array
    sources: Array
    given: Array
    size: int

    def take(self, threads: Array) -> Copy:
        """For those of the threads that take part, under their new numbers."""
        number = {int(old): new for new, old in enumerate(threads)}
        kept = np.array([n for n, old in enumerate(self.threads) if int(old) in number], np.int64)
        renamed = np.array([number[int(old)] for old in self.threads[kept]], np.int64)
        parts = (self.targets[kept], self.sources[kept], self.given[kept])
        return Copy(renamed, *parts, self.size)

    def finish(self, ctas: Ctas) -> None:
        octets = np.zeros((len(self.threads), self.size), np.uint8)
        for given in np.unique(self.given[self.given > 0]):
            some = np.nonzero(self.given == given)[0]
            if given == self.size:
                octets[some] = ctas.launch.storages.load(self.sources[some], self.size)
                continue
            for octet in range(int(given)):
                source = self.sources[some] + np.uint64(octet)
                octets[some, octet] = ctas.launch.storages.load(source, 1)[:, 0]
        of = ctas.cta[self.threads], self.targets, octets, ctas.warp[self.threads]
        ctas.shared.put(*of, "cp.async")


@instruction("cp")
def copy(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if i.has("commit_group"):
        ctas.copies.commit()
    elif i.has("wait_group") or i.has("wait_all"):
        if i.has("wait_all"):
            ctas.copies.commit()
        done = ctas.copies.wait(0 if i.has("wait_all") else i.number(0))
        ctas.shared.complete_fills(ctas.copies.complete)
        for each in done:
            each.finish(ctas)
    elif i.has("async") and (i.has("cg") or i.has("ca")):
        ask(ctas, i, mask)
    else:
        raise PtxError(f"unknown instruction: {i.text}")


def ask(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    chosen, size = chosen_of(ctas, mask), i.number(2)
    if not len(chosen):
        return
    ctas.shared.places(ctas.address(i.operands[0])[chosen], size, "cp.async")
    targets = ctas.address(i.operands[0])[chosen].astype(np.int64) - BASE
    given = np.full(len(chosen), size, np.uint32)
    if len(i.operands) > 3:
        given = ctas.full(i.operands[3], np.uint32)[chosen]
    if (given > size).any():
        raise PtxError(f"a copy of more octets than it writes: {i.text}")
    where = ctas.cta[chosen], targets, size, ctas.warp[chosen]
    ctas.shared.fill(*where, ctas.copies.group)
    sources = ctas.address(i.operands[1])[chosen]
    ctas.copies.open.append(Copy(chosen, targets, sources, given, size))
