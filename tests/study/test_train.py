"""Training: resumed to the bit, stopped early, recorded; `relprop train` and its files."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from relprop import data
from relprop.cli import main
from relprop.errors import FileFormatError, InputError
from relprop.models.train import accuracy
from relprop.study import networks as study
from relprop.study.networks import training as fitting
from relprop.study.networks.layers import Dropout, convolution
from relprop.study.training import Recipe, Training

RECIPE = Recipe(seed=3, epochs=4, batch=32, rate=1e-3)


class Small(nn.Module):
    """Dropout and a layer without a gradient, as the study's networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(784, 20)
        self.unused = nn.Linear(3, 3)
        self.outer = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        h = torch.relu(self.inner(images.flatten(1)))
        logits: Tensor = self.outer(nn.functional.dropout(h, 0.3, self.training))
        return logits


class Convolving(nn.Module):
    """A convolution, whose weight may lie channels last, and the study's own dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = convolution(1, 6, 5)
        self.more = convolution(6, 6, 5)
        self.drop = Dropout()
        self.outer = nn.Linear(6 * 28 * 28, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.more(torch.relu(self.maps(images))).relu()
        logits: Tensor = self.outer(self.drop.begin(maps)(maps).flatten(1))
        return logits


@pytest.fixture(scope="module")
def tasks() -> dict[str, data.Task]:
    whole = data.task("mnist", "sample")
    held = data.task("mnist", "sample").subset(60)
    return {"train": whole, "validation": held, "test": held}


def state_of(training: Training) -> dict[str, Tensor]:
    moments = training.optimizer.state
    found = {f"weight {key}": x for key, x in training.model.state_dict().items()}
    found |= {f"best {key}": x for key, x in training.best_state.items()}
    for key, parameter in training.model.named_parameters():
        found |= {f"{kind} {key}": x for kind, x in moments.get(parameter, {}).items()}
    return {key: x.clone() for key, x in found.items()}


def without_seconds(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in log]


COMPILED = pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__,
    reason="torch.compile wants g++, and a path without a space to link against",
)


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (Small, RECIPE),
        (Convolving, replace(RECIPE, mixed=True)),
        pytest.param(Convolving, replace(RECIPE, mixed=True, compiled=True), marks=COMPILED),
    ],
    ids=["plain", "mixed", "compiled"],
)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, tasks, make, recipe):
    whole = Training(make, tmp_path / "whole", recipe)
    while not whole.finished:
        whole.epoch(tasks["train"], tasks["validation"])
    for _ in range(4):
        torch.rand(7)  # what is drawn in between does not matter
        pieces = Training(make, tmp_path / "pieces", recipe)
        pieces.epoch(tasks["train"], tasks["validation"])
    assert pieces.finished
    expected = state_of(whole)
    assert state_of(pieces).keys() == expected.keys()
    for key, found in state_of(pieces).items():
        torch.testing.assert_close(found, expected[key], rtol=0, atol=0, msg=key)
    assert without_seconds(pieces.log) == without_seconds(whole.log)


def test_compiling_against_a_path_with_a_space_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/an environment/torch/__init__.py")
    with pytest.raises(InputError, match=r"whose path has a space.*--compile"):
        Training(Small, tmp_path, replace(RECIPE, compiled=True))


def test_an_epoch_that_breaks_off_is_done_again(tmp_path, tasks):
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    whole, broken = (Training(Small, tmp_path / name, RECIPE) for name in ("whole", "broken"))
    for training in (whole, broken):
        training.epoch(tasks["train"], tasks["validation"])
    with pytest.raises(KeyboardInterrupt):
        broken.epoch(tasks["train"], tasks["validation"], stop)
    again = Training(Small, tmp_path / "broken", RECIPE)
    assert len(again.log) == 1
    for training in (whole, again):
        training.epoch(tasks["train"], tasks["validation"])
    for key, found in state_of(again).items():
        torch.testing.assert_close(found, state_of(whole)[key], rtol=0, atol=0, msg=key)


def test_training_leaves_the_callers_random_numbers_alone(tmp_path, tasks):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    training = Training(Small, tmp_path, RECIPE)
    training.epoch(tasks["train"], tasks["validation"])
    training.best_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(tmp_path):
    one, same, other = (
        Training(Small, tmp_path / str(n), Recipe(seed=seed)) for n, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one.model.inner.weight, same.model.inner.weight)
    assert not torch.equal(one.model.inner.weight, other.model.inner.weight)


def test_it_learns_and_keeps_the_best(tmp_path, tasks):
    training = Training(Small, tmp_path, Recipe(epochs=25, batch=20, rate=4e-3))
    before = accuracy(training.best_model(), tasks["train"])
    while not training.finished:
        training.epoch(tasks["train"], tasks["validation"])
    best = max(entry["validation_accuracy"] for entry in training.log)
    assert accuracy(training.best_model(), tasks["validation"]) == best
    assert best > 0.9 > 0.3 > before


def test_the_log_is_one_line_an_epoch(tmp_path, tasks):
    training = Training(Small, tmp_path, RECIPE)
    for _ in range(2):
        training.epoch(tasks["train"], tasks["validation"])
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries == training.log
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert entries[1].keys() == {"epoch", "loss", "validation_accuracy", "rate", "seconds"}
    assert entries[0]["rate"] == 1e-3
    # a quarter of the way down half a cosine
    assert math.isclose(entries[1]["rate"], 1e-3 * (1 + math.cos(math.pi / 4)) / 2)


def with_accuracies(training: Training, *values: float) -> Training:
    training.log = [
        {"epoch": n + 1, "validation_accuracy": value} for n, value in enumerate(values)
    ]
    return training


def test_early_stop(tmp_path):
    recipe = Recipe(epochs=9, accepted=0.9, patience=3)
    training = Training(Small, tmp_path, recipe)
    assert not training.finished
    assert not with_accuracies(training, 0.92, 0.91, 0.91).finished
    assert with_accuracies(training, 0.92, 0.91, 0.92, 0.91).finished
    assert training.best["epoch"] == 1
    assert not with_accuracies(training, 0.92, 0.91, 0.91, 0.93).finished
    assert not with_accuracies(training, *[0.5] * 8).finished  # never accepted
    assert with_accuracies(training, *[0.5] * 9).finished


def test_another_recipe_is_refused(tmp_path, tasks):
    Training(Small, tmp_path, RECIPE, facts={"task": "mnist"}).epoch(*[tasks["validation"]] * 2)
    with pytest.raises(InputError, match="another recipe: seed 3, now 4; task 'mnist', now 'x'"):
        Training(Small, tmp_path, Recipe(4, 4, 32), facts={"task": "x"})


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_a_damaged_checkpoint(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"cannot go on from it: .* --restart"):
        Training(Small, tmp_path, RECIPE)


def test_another_networks_checkpoint(tmp_path, tasks):
    Training(Small, tmp_path, RECIPE).epoch(*[tasks["validation"]] * 2)
    with pytest.raises(FileFormatError, match="cannot go on from it: Error"):
        Training(partial(nn.Linear, 3, 3), tmp_path, RECIPE)


def test_a_loss_that_is_not_finite(tmp_path, tasks):
    images = tasks["validation"].images.clone()
    images[0] = torch.nan
    broken = data.single_task(images, torch.zeros(len(images), dtype=torch.int64))
    with pytest.raises(InputError, match="the loss of epoch 1 is nan; train again, with a smaller"):
        Training(Small, tmp_path, RECIPE).epoch(broken, broken)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_dropout_in_some_epochs(tmp_path, tasks):
    seen: list[bool] = []

    class Watched(Small):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(images)

    recipe = Recipe(epochs=4, batch=200, dropout_from=3, dropout_until=3)
    training = Training(Watched, tmp_path, recipe)
    while not training.finished:
        training.epoch(tasks["train"], tasks["validation"])
    # each epoch: one step, one batch to validate
    assert seen == [False, False, False, False, True, False, False, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"epochs": 0},
        {"batch": 0},
        {"rate": 0.0},
        {"rate": math.inf},
        {"dropout_from": 0},
        {"dropout_until": -1},
    ],
)
def test_recipes_out_of_range(wrong):
    with pytest.raises(InputError, match="expected a seed and dropout_until of 0 or more"):
        Recipe(**wrong)


def test_the_weights_to_ship(tmp_path, tasks):
    training = fitting.start("lenet", "mnist", tmp_path, Recipe(epochs=2, batch=20, accepted=0.99))
    facts = fitting.train(training, tasks.__getitem__)
    path = fitting.weights_path(tmp_path)
    assert study.describe("lenet", "mnist", path) == facts
    assert facts["accepted"] is False
    assert (facts["model"], facts["task"], facts["seed"]) == ("lenet", "mnist", 0)
    assert (facts["epochs"], facts["epochs_planned"], facts["test_samples"]) == (2, 2, 60)
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    model = study.load("lenet", "mnist", path)
    assert not model.training
    assert accuracy(model, tasks["test"]) == facts["test_accuracy"]
    full = accuracy(training.best_model(), tasks["test"])
    assert full == facts["test_accuracy_float32"]
    for key, x in model.state_dict().items():
        assert x.dtype is torch.float32
        torch.testing.assert_close(x, training.best_state[key].half().float(), rtol=0, atol=0)


def test_a_finished_training_needs_only_the_test(tmp_path, tasks):
    training = fitting.start("lenet", "mnist", tmp_path, Recipe(epochs=1, batch=50))
    first = fitting.train(training, tasks.__getitem__)
    again = fitting.start("lenet", "mnist", tmp_path, Recipe(epochs=1, batch=50))
    assert fitting.train(again, {"test": tasks["test"]}.__getitem__) == first


def test_every_pair_can_be_built_and_has_a_bar():
    assert len(set(fitting.PAIRS)) == 9 * 2 + 5 * 2
    for name, task in fitting.PAIRS:
        assert task in fitting.ACCEPTED
        study.build(name, *study.steps_and_width(task))


def test_started_from_another_network(tmp_path):
    recipe = Recipe(start_from="r_lstm")
    training = fitting.start("deep", "mnist_maj", tmp_path, recipe)
    other = study.load("r_lstm", "mnist_maj")
    torch.testing.assert_close(training.model.features.layers[0].weight,
                               other.features.layers[0].weight, rtol=0, atol=0)  # fmt: skip
    fresh = fitting.start("deep", "mnist_maj", tmp_path, Recipe())
    assert torch.equal(training.model.hidden.weight, fresh.model.hidden.weight)
    with pytest.raises(InputError, match="conv_plus_deep: no tensor of r_lstm has the name"):
        fitting.start("conv_plus_deep", "mnist_maj", tmp_path, recipe)
    with pytest.raises(FileFormatError, match="no trained weights of 'conv_r_lstm'"):
        fitting.start("conv_deep", "mnist_maj", tmp_path, Recipe(start_from="conv_r_lstm"))


@torch.no_grad()
def test_started_from_a_network_within(tmp_path):
    smaller = study.load("conv_deep", "mnist_maj")
    begun = fitting.start("conv_plus_deep", "mnist_maj", tmp_path, Recipe(start_from="conv_deep"))
    images = torch.rand(2, 1, 28, 84)
    torch.testing.assert_close(begun.model.eval()(images), smaller(images))
    assert begun.model.features.conv1.weight[:, 1:].count_nonzero() == 0
    with pytest.raises(InputError, match="lenet: no tensor of conv_deep has the name and shape"):
        fitting.start("lenet", "mnist", tmp_path, Recipe(start_from="conv_deep"))


# The command.


@pytest.fixture
def small(monkeypatch):
    """Tasks of the shipped sample: 200 images."""
    whole = data.task

    def task(name: str, split: str, root: str | None = None) -> data.Task:
        return whole(name, "sample")

    monkeypatch.setattr(data, "task", task)


def run(*words: object) -> int:
    return main(["train", *map(str, words)])


def test_the_command(small, tmp_path, capsys):
    words = ("lenet", "mnist", "--out", tmp_path, "--epochs", 2, "--device", "cpu")
    assert run(*words) == 1  # two epochs of 200 images are below the accepted accuracy
    out = capsys.readouterr().out
    assert "lenet mnist: epoch 2/2  loss " in out
    assert "below the accepted 0.98" in out
    folder = tmp_path / "lenet-mnist"
    names = {"checkpoint.safetensors", "log.jsonl", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert study.load("lenet", "mnist", folder / "weights.safetensors")
    assert run(*words) == 0
    assert capsys.readouterr().out.startswith("lenet mnist: trained already")


def test_the_command_goes_on_or_starts_anew(small, tmp_path, capsys):
    words = ("lenet", "mnist", "--out", tmp_path, "--epochs", 1, "--batch-size", 100, "--quiet")
    run(*words)
    weights = tmp_path / "lenet-mnist" / "weights.safetensors"
    weights.unlink()
    stamp = (tmp_path / "lenet-mnist" / "checkpoint.safetensors").stat().st_mtime_ns
    run(*words)
    assert weights.exists()
    assert (tmp_path / "lenet-mnist" / "checkpoint.safetensors").stat().st_mtime_ns == stamp
    weights.unlink()
    assert run(*words, "--seed", 1) == 2
    assert "was made with another recipe: seed 0, now 1" in capsys.readouterr().err
    assert run(*words, "--seed", 1, "--restart") == 1
    assert study.describe("lenet", "mnist", weights)["seed"] == 1


def test_all_trains_what_is_left(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "pairs", lambda: [("shallow", "mnist"), ("deep", "mnist")])
    done = tmp_path / "deep_v2-mnist"
    done.mkdir()
    (done / "weights.safetensors").touch()
    assert run("all", "mnist", "--out", tmp_path, "--epochs", 1, "--quiet") == 1
    trained = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert trained == ["lenet mnist", "conv_deep mnist"]


def test_what_the_command_refuses(tmp_path, capsys):
    for words, message in (
        (("vgg", "mnist"), "no architecture 'vgg'"),
        (("lenet", "mnist_maj"), "lenet: 12 steps of width 7"),
        (("conv_r_lstm", "all"), "no pair of the study; name both"),
        (
            ("lenet", "mnist", "--epochs", 0),
            "expected a seed and dropout_until of 0 or more; epochs",
        ),
        (("lenet", "mnist", "--jobs", 0), "--jobs 0 --threads 0: expected"),
        (("lenet", "mnist", "--threads", -1), "--jobs 1 --threads -1: expected"),
        (("lenet", "mnist", "--data", tmp_path), "MNIST, split 'train': not found in"),
    ):
        assert run(*words, "--out", tmp_path / "out", "--device", "cpu") == 2
        assert message in capsys.readouterr().err


DRIVER = """
import os, signal, sys
from relprop import data
from relprop.cli import main
from relprop.batch.status import Status
whole, advance, left = data.task, Status.advance, int(sys.argv[1])
data.task = lambda name, split, root=None: whole(name, "sample")
def counted(self, count):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, count)
Status.advance = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def one_thread():
    """Sums of other threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_and_started_again(tmp_path, one_thread):
    """Killed in step 13, the third of epoch 3: the second run goes on with that epoch."""
    words = ["lenet", "mnist", "--epochs", "4", "--batch-size", "40", "--threads", "1"]
    words += ["--out", str(tmp_path)]
    for steps, status in ((13, -signal.SIGKILL), (0, 1)):
        command = [sys.executable, "-c", DRIVER, str(steps), "train", *words]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == status, process.stderr
    folder = tmp_path / "lenet-mnist"
    assert process.stdout.startswith("lenet mnist: epoch 3/4")
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    training = fitting.start("lenet", "mnist", tmp_path / "whole", Recipe(epochs=4, batch=40))
    sample = data.task("mnist", "sample")
    fitting.train(training, lambda split: sample)
    assert without_seconds(training.log) == without_seconds(entries)


def test_several_at_a_time(tmp_path, capfd):
    """Each pair in a process of its own; here both fail, for want of data."""
    words = ("r_lstm", "all", "--restart", "--jobs", 2)
    assert run(*words, "--data", tmp_path, "--out", tmp_path) == 1
    lines = capfd.readouterr().err.splitlines()
    starts = sorted(line.partition(" not found")[0] for line in lines)
    assert starts == [f"relprop: {name}, split 'train':" for name in ("FashionMNIST", "MNIST")]
