"""K targets of each sample in one call, against K calls of one target.

python -m benchmarks.targets        VGG-16 under epsilon_plus, K = 10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import relprop
from benchmarks.cnn import environment, write_record
from benchmarks.peers import network
from benchmarks.timing import interleaved
from relprop.tables import table

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--method", default="epsilon_plus")
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    model = network(arguments.model)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    images = images.contiguous(memory_format=torch.channels_last)
    wanted = model(images).topk(arguments.targets).indices
    explainer = relprop.Explainer(model, arguments.method)

    def one_by_one() -> None:
        for column in wanted.unbind(1):
            explainer(images, target=column)

    together = explainer(images, target=wanted)
    assert isinstance(together, torch.Tensor)
    single = explainer(images, target=wanted[:, -1])
    torch.testing.assert_close(
        together[:, -1], single, rtol=1e-3, atol=1e-5 * float(single.abs().max())
    )
    calls = {"one call": lambda: explainer(images, target=wanted), "K calls": one_by_one}
    timings = interleaved(calls, arguments.rounds)
    ratio = timings["one call"].median / timings["K calls"].median
    row = {
        "model": arguments.model,
        "method": arguments.method,
        "targets": arguments.targets,
        "batch": arguments.batch,
        "size": arguments.size,
        "one_call_s": round(timings["one call"].median, 4),
        "k_calls_s": round(timings["K calls"].median, 4),
        "ratio": round(ratio, 3),
        "rounds": arguments.rounds,
        **environment(),
    }
    print(table(list(row), [[str(value) for value in row.values()]]))
    if arguments.record is not None:
        write_record(arguments.record, [row])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
