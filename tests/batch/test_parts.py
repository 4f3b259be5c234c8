"""The parts of a job, each with answers worked out by hand."""

from __future__ import annotations

import errno
import io
import signal
from pathlib import Path

import pytest
import torch

from relprop.batch.manifest import Manifest
from relprop.batch.processes import _relay
from relprop.batch.reduce import parse_reduction
from relprop.batch.status import Status, Stop, stages
from relprop.batch.summaries import Summaries, merged
from relprop.batch.tuning import best_batch_size
from relprop.errors import InputError


class TestReductions:
    def test_pooling_sums_cells(self) -> None:
        maps = torch.arange(16.0).reshape(1, 1, 4, 4)
        found = parse_reduction("pool:2x2").maps(maps, 1)
        assert found.tolist() == [[[[0 + 1 + 4 + 5, 2 + 3 + 6 + 7], [8 + 9 + 12 + 13, 50]]]]

    def test_pooling_where_sizes_do_not_divide_keeps_every_entry_once(self) -> None:
        maps = torch.tensor([[1.0, 2, 3, 4, 5]])
        assert parse_reduction("pool:2").maps(maps, 1).tolist() == [[1 + 2 + 3, 4 + 5]]
        ragged = torch.randint(-9, 9, (2, 3, 7, 5)).double()
        pooled = parse_reduction("pool:3x2").maps(ragged, 1)
        assert pooled.shape == (2, 3, 3, 2) and torch.equal(pooled.sum((2, 3)), ragged.sum((2, 3)))

    def test_channels_then_the_largest(self) -> None:
        maps = torch.tensor([[[[1.0, -7], [2, 0]], [[1, 1], [3, 0]]]])
        reduction = parse_reduction("channel-sum,topk:2")
        left = reduction.maps(maps, 1)
        assert left.tolist() == [[[2, -6], [5, 0]]]
        found = reduction.pick(left, 1)
        assert found.relevance.tolist() == [[-6, 5]]
        assert found.position is not None and found.position.tolist() == [[1, 2]]

    def test_equal_entries_in_the_order_of_their_positions(self) -> None:
        found = parse_reduction("topk:3").pick(torch.tensor([[0.0, 2, -2, 2, 1]]), 1)
        assert found.position is not None and found.position.tolist() == [[1, 2, 3]]

    def test_several_targets_apart(self) -> None:
        maps = torch.arange(8.0).reshape(1, 2, 2, 2)
        assert parse_reduction("channel-sum").maps(maps, 2).tolist() == [[[2, 4], [10, 12]]]

    @pytest.mark.parametrize(
        "text", ["pool", "pool:0", "pool:1x2x3", "topk:", "topk:-1", "channel-sum:3", "pool:²", ","]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(InputError, match="expected pool:N"):
            parse_reduction(text)

    def test_too_many(self) -> None:
        with pytest.raises(InputError, match="has 4 entries"):
            parse_reduction("topk:5").pick(torch.zeros(1, 2, 2), 1)


class TestSummaries:
    def test_channels(self) -> None:
        sums = Summaries(["channel"])
        sums.add(
            torch.tensor([[[[1.0, -3]], [[0, 0]]], [[[5, 5]], [[-2, 0]]]]), torch.tensor([0, 1])
        )
        assert sums.tensors()["summary.channel"].tolist() == [2 + 5, 0 + 1]
        assert merged([sums.tensors()])["channel"].tolist() == [3.5, 0.5]

    def test_classes_over_shards(self) -> None:
        first, second = Summaries(["class"]), Summaries(["class"])
        first.add(torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([7, 2, 7]))
        second.add(torch.tensor([[10.0, 0]]), torch.tensor([7]))
        found = merged([first.tensors(), second.tensors()])
        assert found["class.label"].tolist() == [2, 7] and found["class.count"].tolist() == [1, 3]
        torch.testing.assert_close(
            found["class"], torch.tensor([[3, 4], [16 / 3, 8 / 3]], dtype=torch.float64)
        )
        assert found["count"].tolist() == [4]

    def test_time(self) -> None:
        sums = Summaries(["time", "channel"])
        sums.add(torch.tensor([[[1.0, -2], [3, 0], [0, 0]]]), torch.tensor([0]))
        assert sums.tensors()["summary.time"].tolist() == [[-1, 3, 0], [3, 3, 0]]
        assert sums.tensors()["summary.channel"].tolist() == pytest.approx([4 / 3, 2 / 3])

    def test_nothing_asked_for(self) -> None:
        sums = Summaries([])
        sums.add(torch.ones(1, 2), torch.tensor([0]))
        assert sums.tensors() == {} and merged([{}]) == {}

    def test_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("relprop.batch.summaries.MAX_BYTES", 40)
        sums = Summaries(["class"])
        sums.add(torch.ones(1, 4), torch.tensor([0]))
        with pytest.raises(InputError, match="--reduce pool"):
            sums.add(torch.ones(1, 4), torch.tensor([1]))


class TestBatchSize:
    @staticmethod
    def found(seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch, limit: int = 1024) -> int:
        """The size chosen where a batch of each size takes these seconds by a made-up clock."""
        clock = [0.0]
        monkeypatch.setattr("relprop.batch.tuning.time.perf_counter", lambda: clock[0])

        def explain(size: int) -> None:
            if size not in seconds:
                raise torch.OutOfMemoryError("CUDA out of memory")
            clock[0] += seconds[size]

        return best_batch_size(explain, limit)

    def test_grows_while_it_pays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = {8: 0.008, 16: 0.010, 32: 0.012, 64: 0.024, 128: 0.05, 256: 0.1}
        assert self.found(times, monkeypatch) == 32

    def test_ends_with_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.found({8: 0.008, 16: 0.009, 32: 0.01}, monkeypatch) == 32

    def test_no_more_than_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.found({5: 0.1}, monkeypatch, limit=5) == 5

    def test_not_even_the_first_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.found({}, monkeypatch) == 1

    def test_slow_networks_are_not_searched_for_minutes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = {8: 1.0, 16: 1.5}  # a third size would raise
        assert self.found(times, monkeypatch) == 8

    def test_other_errors_come_through(self) -> None:
        def explain(size: int) -> None:
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            best_batch_size(explain, 8)


class TestStatus:
    def test_line(self) -> None:
        status = Status(1000, quiet=False, workers=2, stream=io.StringIO())
        status.advance(100, {"read": 1.0, "explain": 18.0, "write": 2.0})
        status.advance(100, {"read": 1.0, "explain": 18.0, "write": 2.0}, worker=1)
        text = status.text(20.0)
        assert text == "200/1000  10.0/s  read 5% explain 90% write 10%  0:01:20 left"

    def test_a_line_of_several_workers_is_said_once(self) -> None:
        """Each worker tries the shard that another could not write, and fails like it."""
        status = Status(8, quiet=True, workers=3, stream=io.StringIO())
        for rank in range(3):
            _relay(("line", "shard-000001: cannot be written: no space left"), rank, status)
            _relay(("line", "shard-000002: cannot be written: no space left"), rank, status)
        assert status.stream.getvalue().splitlines() == [
            "relprop: shard-000001: cannot be written: no space left",
            "relprop: shard-000002: cannot be written: no space left",
        ]

    def test_stages(self) -> None:
        assert stages({"read": 0.5, "explain": 2.0}, 2.0) == "read 25% explain 100%"

    def test_first_signal_asks_second_ends(self) -> None:
        stop, before = Stop(), signal.getsignal(signal.SIGINT)
        with stop.listening(False):
            signal.raise_signal(signal.SIGINT)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is before


def test_a_manifest_names_its_shards() -> None:
    manifest = Manifest({"format": "parquet"}, {}, 4096 * 1500 + 1, 4096, 32)
    assert manifest.count == 1501 and manifest.span(1500) == (4096 * 1500, 4096 * 1500 + 1)
    assert manifest.name(1500) == "shards/0001/shard-001500.parquet"


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    from relprop.batch.files import writing_shard
    from relprop.errors import FileFormatError

    manifest = Manifest({"format": "safetensors"}, {}, 4, 4, 4)
    (tmp_path / "manifest.json").touch()
    with (
        pytest.raises(FileFormatError, match="no space left"),
        writing_shard(tmp_path, manifest, 0),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in (tmp_path / "shards" / "0000").iterdir()] == []
