"""Faults put into the PTX of a product: the executor, or the error bound, notices each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
from layer_support import check

from ptx.driver import Faults, PtxDriver
from ptx.text import PtxError
from relprop.graph.maps import Dense
from relprop.rules import Epsilon
from tables import Layer

pytestmark = pytest.mark.ptx(90)

LAYER = Layer("ten steps of three slots", Dense(), (70, 640), (80, 640))
"""So that the loop ends in the slot that the epilogue uses."""


def substituted(pattern: str, by: str, number: int = 0) -> Callable[[str], str]:
    """Every occurrence replaced, or the one of a number alone."""

    def edit(text: str) -> str:
        places = list(re.finditer(pattern, text))
        for place in reversed(places[number - 1 : number] if number else places):
            text = text[: place.start()] + place.expand(by) + text[place.end() :]
        return text

    return edit


BARRIER = r"bar\.sync\s+0;"
FAULTS = {
    "the loop's first barrier dropped": substituted(BARRIER, "", 1),
    "the loop's second barrier dropped": substituted(BARRIER, "", 2),
    "the barrier behind the loop dropped": substituted(BARRIER, "", 3),
    "the epilogue's barrier dropped": substituted(BARRIER, "", 4),
    "copies waited for too late": substituted(r"(cp\.async\.wait_group\s+)2;", r"\g<1>3;"),
    "the last copies not waited for": substituted(r"(cp\.async\.wait_group\s+)0;", r"\g<1>9;"),
    "a group of copies joined to the next": substituted(r"cp\.async\.commit_group;", "", 4),
    "products waited for too late": substituted(r"(wgmma\.wait_group\S+ )1;", r"\g<1>2;"),
    "the last product not waited for": substituted(r"(wgmma\.wait_group\S+ )0;", r"\g<1>1;"),
    "the proxies' fence dropped": substituted(r"fence\.proxy\.async\S*;", ""),
    "the copies' masks ignored": substituted(
        r"(cp\.async\.cg\.shared\.global [^;]*0x10), %r\d+;", r"\g<1>, 16;"
    ),
    "the loads' masks ignored": substituted(r"@%p\d+ (ld\.global)", r"\g<1>"),
    "the stores' masks ignored": substituted(r"@%p\d+ (st\.global)", r"\g<1>"),
    "stores one number further": substituted(
        r"(st\.global\.v4\.b32 \[ %rd\d+ \+) 0 ", r"\g<1> 16 "
    ),
    "a tile's rows in another order": substituted(r"(xor\.b32\s+%r\d+, %r\d+), (\d+);", r"\1, 0;"),
    "a product's sign": substituted(r"(wgmma\.mma_async[^;]*%p\d+, )1,", r"\g<1>-1,", 1),
}  # fmt: skip


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What is done to kernels before they run."""
    driver = triton.runtime.driver.active
    assert isinstance(driver, PtxDriver)
    yield driver.faults
    driver.faults = Faults()


def explained() -> None:
    check(LAYER, Epsilon(1e-2), "contiguous", dtype=torch.bfloat16, nonnegative=True, targets=1)


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_noticed(name: str, faults: Faults) -> None:
    changed = []

    def edit(text: str) -> str:
        if ".entry dense_contraction" not in text:
            return text
        wrong = FAULTS[name](text)
        changed.append(wrong != text)
        return wrong

    faults.text = edit
    with pytest.raises((PtxError, AssertionError)):
        explained()
    assert changed and all(changed), "the text has no such place any more"


def test_half_the_shared_memory_is_noticed(faults: Faults) -> None:
    faults.shared = lambda size: size // 2
    with pytest.raises(PtxError, match="outside"):
        explained()


def test_without_a_fault_nothing_is_noticed() -> None:
    explained()
