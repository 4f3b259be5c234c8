"""Explanations: the conservation report by hand, the file there and back, hostile files."""

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from relprop import explanation as module
from relprop.errors import FileFormatError, InputError
from relprop.explanation import Explanation, StepRecord


def steps():
    """Two targets of two samples: 10, 0, 4, -4 begin; samples cancel in the second step."""
    start = torch.tensor([[10.0, 0.0], [4.0, -4.0]])
    middle = torch.tensor([[9.5, 0.0], [4.0, -4.0]])
    end = torch.tensor([[8.5, 1.0], [5.0, -5.0]])
    return (
        StepRecord(2, "linear", "head", "Epsilon(0.1)", start, middle),
        StepRecord(1, "relu", "", "Pass", middle, middle),
        StepRecord(0, "conv2d", "features.0@1", "ZPlus", middle, end),
    )


def explanation(**changes):
    values = {
        "relevance": torch.arange(24.0).reshape(2, 3, 4),
        "output": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "target": 1,
        "layers": {"features.0": torch.ones(2, 5), "features.0@1": torch.zeros(2, 5, 1, 1)},
        "convergence_delta": torch.tensor([0.5, -0.25]),
        "method": "epsilon_plus",
        "steps": steps(),
    }
    return Explanation(**(values | changes))


def round_trip(tmp_path, result):
    result.save(tmp_path / "one.safetensors")
    return Explanation.load(tmp_path / "one.safetensors")


def test_the_conservation_report_by_hand():
    report = explanation().conservation()
    assert [(r.step, r.operation, r.path, r.rule) for r in report] == [
        (2, "linear", "head", "Epsilon(0.1)"),
        (1, "relu", "", "Pass"),
        (0, "conv2d", "features.0@1", "ZPlus"),
    ]
    assert [(r.relevance_out, r.relevance_in, r.absorbed, r.loss) for r in report] == [
        (10.0, 9.5, 0.5, 0.5),
        (9.5, 9.5, 0.0, 0.0),
        (9.5, 9.5, 0.0, 4.0),
    ]
    assert report.total_absorbed == 0.5
    assert report.worst is report.rows[2]
    assert report.worst.per_sample.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert report.per_sample.tolist() == [[1.5, -1.0], [-1.0, 1.0]]
    assert len(report) == 3


def test_the_report_prints_as_an_aligned_table():
    lines = str(explanation().conservation()).splitlines()
    assert lines == [
        "step  operation  module path   rule          relevance out  relevance in  absorbed",
        "----  ---------  ------------  ------------  -------------  ------------  --------",
        "2     linear     head          Epsilon(0.1)             10           9.5       0.5",
        "1     relu                     Pass                    9.5           9.5         0",
        "0     conv2d     features.0@1  ZPlus                   9.5           9.5         0",
        "total absorbed 0.5; worst 4 in step 0, conv2d at 'features.0@1'",
    ]


def test_absorbed_is_taken_in_float64():
    big, bigger = torch.full((1, 1), 16777216.0), torch.full((1, 1), 16777218.0)
    record = StepRecord(0, "linear", "", "Epsilon", bigger, big)
    assert record.absorbed.dtype is torch.float64 and record.absorbed.item() == 2.0
    rows = [replace(record, relevance_in=torch.full((1, 3), 0.1).bfloat16())]
    assert rows[0].absorbed.dtype is torch.float64


def test_the_worst_is_the_first_of_equals_and_not_a_number_is_worse():
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    lossy = [StepRecord(i, "linear", str(i), "Epsilon", one, zero) for i in range(3)]
    assert explanation(steps=lossy).conservation().worst.step == 0
    lossy.append(StepRecord(3, "conv2d", "bad", "Epsilon", one, one * float("nan")))
    assert explanation(steps=lossy).conservation().worst.path == "bad"


def test_a_report_without_steps():
    report = explanation(steps=()).conservation()
    assert report.worst is None and report.total_absorbed == 0 and len(report) == 0
    assert report.per_sample.shape == (0, 0)
    assert str(report) == "No steps were recorded."


@pytest.mark.parametrize(
    "target",
    [
        None,
        0,
        [1, 0],
        [],
        (1, 2),
        [(0, 1), (1, 0)],
        torch.tensor([1, 0]),
        torch.tensor([[1, 0], [0, 1]], dtype=torch.int32),
        torch.zeros(0, 3, dtype=torch.long),
    ],
)
def test_targets_there_and_back(tmp_path, target):
    result = explanation(target=target)
    found = round_trip(tmp_path, result)
    assert found == result
    assert type(found.target) is type(target)
    if isinstance(target, torch.Tensor):
        assert torch.equal(found.target, target) and found.target.dtype is target.dtype
    else:
        assert found.target == target


def test_numpy_targets_come_back_as_integers_and_tensors(tmp_path):
    assert round_trip(tmp_path, explanation(target=np.int64(3))).target == 3
    assert round_trip(tmp_path, explanation(target=torch.tensor(3))).target == 3
    assert round_trip(tmp_path, explanation(target=[np.int32(1), 0])).target == [1, 0]
    found = round_trip(tmp_path, explanation(target=np.array([1, 0])))
    assert torch.equal(found.target, torch.tensor([1, 0]))


@pytest.mark.parametrize("target", ["1", 1.5, True, {"a": 1}, [torch.tensor([1, 2])]])
def test_other_targets_are_refused(tmp_path, target):
    with pytest.raises(InputError, match=r"Explanation\.target: .* cannot be saved; expected None"):
        explanation(target=target).save(tmp_path / "one.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_tensors_there_and_back(tmp_path):
    relevance = (torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 7)[:, ::2], torch.zeros(0))
    result = explanation(
        relevance=relevance, layers={"": torch.randn(2, 2), "a.b@12": relevance[0]}
    )
    found = round_trip(tmp_path, result)
    assert isinstance(found.relevance, tuple)
    for mine, theirs in zip(relevance, found.relevance, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=0)
    assert list(found.layers) == ["", "a.b@12"]
    assert torch.equal(found.layers["a.b@12"], relevance[0])
    assert torch.equal(found.output, result.output)
    assert torch.equal(found.convergence_delta, result.convergence_delta)
    assert found.method == "epsilon_plus"
    assert str(found.conservation()) == str(result.conservation())
    assert found.conservation().worst.per_sample.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert found == result


def test_one_relevance_and_a_tuple_of_one_stay_apart(tmp_path):
    single, several = explanation(), explanation(relevance=(explanation().relevance,))
    assert isinstance(round_trip(tmp_path, single).relevance, torch.Tensor)
    assert isinstance(round_trip(tmp_path, several).relevance, tuple)
    assert single != several


def test_channels_last_gradients_and_not_a_number(tmp_path):
    relevance = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    found = round_trip(tmp_path, explanation(relevance=relevance))
    assert torch.equal(found.relevance, relevance) and not found.relevance.requires_grad
    result = explanation(relevance=torch.tensor([1.0, float("nan"), float("inf")]))
    assert round_trip(tmp_path, result) == result


def test_what_is_not_equal():
    base = explanation()
    assert base == explanation()
    for changes in [
        {"relevance": base.relevance + 1},
        {"relevance": base.relevance.double()},
        {"output": base.output[:1]},
        {"target": 0},
        {"layers": {}},
        {"layers": {**base.layers, "more": base.output}},
        {"convergence_delta": base.convergence_delta * 2},
        {"method": "other"},
        {"steps": ()},
        {"steps": (*steps()[:2], replace(steps()[2], rule="Flat"))},
        {"steps": (*steps()[:2], replace(steps()[2], relevance_in=torch.zeros(2, 2)))},
    ]:
        assert base != explanation(**changes), changes
    assert base != "explanation"
    with pytest.raises(TypeError):
        hash(base)


def test_repr_is_short():
    assert repr(explanation()) == (
        "Explanation(method='epsilon_plus', relevance=[2, 3, 4], "
        "layers=['features.0', 'features.0@1'], steps=3)"
    )
    several = explanation(relevance=(torch.zeros(2), torch.zeros(3)))
    assert "relevance=[[2], [3]]" in repr(several)


def test_the_file_is_plain_safetensors(tmp_path):
    explanation().save(str(tmp_path / "one.safetensors"))
    tensors = load_file(tmp_path / "one.safetensors")
    assert torch.equal(tensors["relevance:0"], explanation().relevance)
    assert tensors["layer:features.0@1"].shape == (2, 5, 1, 1)


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_text("older")
    explanation().save(path)
    assert os.listdir(tmp_path) == ["one.safetensors"]
    assert Explanation.load(path) == explanation()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch, function):
    path = tmp_path / "one.safetensors"
    explanation(target=0).save(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, function, fail)
    with pytest.raises(FileFormatError, match="cannot be written: No space left on device"):
        explanation(target=1).save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["one.safetensors"]
    assert Explanation.load(path).target == 0


def test_the_data_is_on_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace_file = os.fsync, os.replace
    monkeypatch.setattr(module.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        module.os, "replace", lambda a, b: (calls.append("replace"), replace_file(a, b))
    )
    explanation().save(tmp_path / "one.safetensors")
    assert calls[:2] == ["fsync", "replace"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be written: No such file or directory"):
        explanation().save(tmp_path / "missing" / "one.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot be written: Not a directory"):
        explanation().save(tmp_path / "file" / "one.safetensors")


def damaged(data, *, header=None, metadata=None):
    """The file with its JSON header, or the JSON inside its metadata, changed."""
    length = struct.unpack("<Q", data[:8])[0]
    words = json.loads(data[8 : 8 + length])
    if metadata is not None:
        inner = json.loads(words["__metadata__"]["explanation"])
        metadata(inner)
        words["__metadata__"]["explanation"] = json.dumps(inner)
    if header is not None:
        header(words)
    text = json.dumps(words).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: b"", "not a whole safetensors file"),
        (lambda d: d[:4], "not a whole safetensors file"),
        (lambda d: d[:100], "not a whole safetensors file"),
        (lambda d: d[:-1], "not a whole safetensors file"),
        (lambda d: d + b"\0", "not a whole safetensors file"),
        (lambda d: b"\xff" * len(d), "not a whole safetensors file"),
        (lambda d: b"PK\x03\x04" + d, "not a whole safetensors file"),
        (
            lambda d: damaged(d, header=lambda h: h["output"].update(shape=[2**40, 2])),
            "not a whole safetensors file",
        ),
        (lambda d: damaged(d, header=lambda h: h.pop("__metadata__")), "not of an explanation"),
        (
            lambda d: damaged(d, header=lambda h: h["__metadata__"].update(format="pt")),
            "not of an explanation",
        ),
        (
            lambda d: damaged(d, header=lambda h: h["__metadata__"].update(version="2")),
            "version '2' of the format; this relprop reads version 1",
        ),
        (
            lambda d: damaged(d, header=lambda h: h["__metadata__"].update(explanation="{")),
            "a damaged explanation",
        ),
        (
            lambda d: damaged(d, header=lambda h: h["__metadata__"].update(explanation="[]")),
            "a damaged explanation",
        ),
        (
            lambda d: damaged(d, header=lambda h: h["__metadata__"].update(explanation="[" * 9**5)),
            "not a whole|damaged",
        ),
        (lambda d: damaged(d, metadata=lambda m: m.pop("method")), "a damaged explanation"),
        (lambda d: damaged(d, metadata=lambda m: m.update(layers=["no"])), "not a whole|damaged"),
        (lambda d: damaged(d, metadata=lambda m: m.update(layers=7)), "a damaged explanation"),
        (lambda d: damaged(d, metadata=lambda m: m.update(inputs=0)), "a damaged explanation"),
        (lambda d: damaged(d, metadata=lambda m: m.update(inputs=9)), "not a whole|damaged"),
        (lambda d: damaged(d, metadata=lambda m: m["steps"].pop()), "2 steps, relevance of 3"),
        (lambda d: damaged(d, metadata=lambda m: m["steps"][0].pop()), "a damaged explanation"),
        (lambda d: damaged(d, metadata=lambda m: m.update(target="x")), "a damaged explanation"),
        (lambda d: damaged(d, metadata=lambda m: m.update(target={})), "a damaged explanation"),
    ],
)
def test_damaged_and_foreign_files(tmp_path, damage, words):
    path = tmp_path / "one.safetensors"
    explanation().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=words) as error:
        Explanation.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_too_large(tmp_path):
    path = tmp_path / "one.safetensors"
    with pytest.raises(FileFormatError, match="no such file; expected one that"):
        Explanation.load(path)
    with pytest.raises(FileFormatError, match="not a file"):
        Explanation.load(tmp_path)
    explanation().save(path)
    size = path.stat().st_size
    with pytest.raises(FileFormatError, match=f"{size} bytes, more than.*max_bytes={size}"):
        Explanation.load(path, max_bytes=size - 1)
    assert Explanation.load(path, max_bytes=size) == explanation()
    with open(path, "wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    with pytest.raises(FileFormatError, match="max_bytes"):
        Explanation.load(path)


def test_another_safetensors_file(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match="not of an explanation"):
        Explanation.load(tmp_path / "model.safetensors")


def test_a_loaded_tensor_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "one.safetensors"
    explanation().save(path)
    found = Explanation.load(path)
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(b"\0" * len(data))
    assert found == explanation()
