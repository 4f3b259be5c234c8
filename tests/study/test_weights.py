"""The study's shipped weights: as accurate as stated, conserving, and listed in the model card."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import relprop
from relprop import data, models
from relprop.errors import FileFormatError
from relprop.models.train import accuracy
from relprop.study import networks as study
from relprop.study.networks import card
from relprop.study.networks.registry import weights_file
from relprop.study.networks.training import ACCEPTED

PAIRS = study.pairs()
METHODS: tuple[study.Kind, ...] = ("deep_taylor", ("lrp", 1.5, 0.5), ("lrp", 2, 1))


def test_weights_are_shipped() -> None:
    assert {("r_lstm", "mnist_maj"), ("r_lstm_sd", "mnist_maj")} <= set(PAIRS)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_what_is_stated(name: str, task: str) -> None:
    facts = study.describe(name, task)
    assert (facts["model"], facts["task"], facts["test_samples"]) == (name, task, 10_000)
    accuracy = facts["test_accuracy"]
    assert abs(accuracy - facts["test_accuracy_float32"]) <= 0.001
    assert facts["accepted"] == (accuracy >= ACCEPTED[task])
    reported = card.REPORTED.get((task, name))
    assert accuracy >= (ACCEPTED[task] if reported is None else reported - 0.01)
    with safe_open(weights_file(name, task), framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_accuracy_on_the_sample(name: str, task: str) -> None:
    stated = study.describe(name, task)["test_accuracy"]
    found = accuracy(study.load(name, task), data.task(task, "sample"))
    # Four standard deviations of 200 answers, each right with the stated chance.
    assert found >= stated - 4 * (stated * (1 - stated) / 200) ** 0.5


@pytest.mark.parametrize(
    ("name", "task"),
    [pytest.param(*p, marks=[pytest.mark.slow] if "conv" in p[0] else []) for p in PAIRS],
)
def test_relevance_is_conserved(name: str, task: str) -> None:
    model = study.load(name, task).double()
    images, labels, _ = data.task(task, "sample").batch(slice(0, 50))
    images = images.double()
    with torch.no_grad():
        logits = model(images).gather(1, labels[:, None])[:, 0].relu()
    for kind in METHODS:
        explainer = relprop.Explainer(model, study.method(name, kind))
        lost = explainer(images, target=labels).flatten(1).sum(1) - logits
        assert (lost.abs() <= 1e-4 * logits.clamp(min=1)).all(), kind


def test_the_model_card_lists_them() -> None:
    text = (models.FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.card(text, card.table([study.describe(*pair) for pair in PAIRS])) == text
    assert text.count("| `mnist_maj` |") == sum(task == "mnist_maj" for _, task in PAIRS)


FACTS = {
    "model": "r_lstm_sd", "task": "mnist_maj", "test_accuracy": 0.97654,
    "test_accuracy_float32": 0.9766, "accepted": True, "seed": 4, "best_epoch": 7,
    "epochs_planned": 10, "seconds": 130, "device": "cpu", "commit": "abc",
}  # fmt: skip


def test_a_row_of_the_card() -> None:
    low = {**FACTS, "model": "lenet", "task": "mnist", "accepted": False, "commit": ""}
    low.update(dropout_from=4, dropout_until=6, batch=100, start_from="deep")
    rows = card.table([low, FACTS]).splitlines()[2:]
    assert rows == [
        "| R-LSTM-SD | `mnist_maj` | 0.9765 | 0.9766 | 0.986 | 4 | 7 of 10 | cpu | abc |",
        "| LeNet | `mnist` | 0.9765 (below accepted) | 0.9766 | – | 4 | 7 of 10, dropout from 4, dropout until 6, batches of 100, started from Deep | cpu | – |",  # noqa: E501
    ]


def test_what_was_chosen_in_sight_of_the_test_samples_is_remarked() -> None:
    facts = study.describe("r_lstm_sd", "fashion_mnist_maj")
    remark = " ".join(card.table([facts]).partition("\n\n")[2].split())
    assert remark.startswith("R-LSTM-SD on `fashion_mnist_maj`: its number of epochs, 24, was")
    assert facts["epochs_planned"] == 24 and "0.8990" in remark
    assert "\n\n" not in card.table([{**facts, "commit": "of another training"}])


def test_shipping(tmp_path, monkeypatch, capsys) -> None:
    trained, folder = tmp_path / "trained" / "lenet-mnist", tmp_path / "weights"
    trained.mkdir(parents=True)
    folder.mkdir()
    state = {key: x.half() for key, x in study.build("lenet", 1, 28).state_dict().items()}
    facts = {**FACTS, "model": "lenet", "task": "mnist"}
    save_file(state, trained / "weights.safetensors", metadata={"training": json.dumps(facts)})
    monkeypatch.setattr(models, "FOLDER", folder)
    (folder / "README.md").write_text("# Card\n")
    assert card.main([str(tmp_path / "trained")]) == 1
    assert "the model card lacks the marks" in capsys.readouterr().err
    (folder / "README.md").write_text(f"# Card\n{card.BEGIN}old\n{card.END}end\n")
    assert card.main([str(tmp_path / "trained")]) == 0
    expected = f"# Card\n{card.BEGIN}{card.table([facts])}{card.END}end\n"
    assert (folder / "README.md").read_text() == expected
    assert study.pairs() == [("lenet", "mnist")]
    assert study.describe("lenet", "mnist") == facts
    for key, x in study.load("lenet", "mnist").state_dict().items():
        torch.testing.assert_close(x, state[key].float(), rtol=0, atol=0)


def test_damaged_weights_are_not_shipped(tmp_path, monkeypatch) -> None:
    trained = tmp_path / "lenet-mnist"
    trained.mkdir()
    state = study.build("deep", 1, 28).state_dict()
    save_file(state, trained / "weights.safetensors", metadata={"training": json.dumps(FACTS)})
    monkeypatch.setattr(models, "FOLDER", tmp_path / "weights")
    with pytest.raises(FileFormatError, match="another network's tensors"):
        card.ship(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys) -> None:
    assert card.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such folder; expected the --out of" in capsys.readouterr().err
