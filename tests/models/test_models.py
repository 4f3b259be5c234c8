"""The shipped networks: their accuracy, their files, the training script."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from relprop import data, models
from relprop.errors import FileFormatError, InputError
from relprop.models import train as training

NAMES = ("mnist_cnn", "fashion_mnist_cnn")


def test_names():
    assert models.names() == NAMES
    with pytest.raises(InputError, match="'vgg'; there are mnist_cnn, fashion_mnist_cnn"):
        models.load("vgg")


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_the_sample(name):
    facts = models.describe(name)
    model = models.load(name)
    sample = data.task(models.shipped(name).dataset, "sample")
    assert training.accuracy(model, sample) >= 0.95 * facts["test_accuracy"]


@pytest.mark.parametrize(
    ("name", "accuracy", "parameters"),
    [("mnist_cnn", 0.985, 63_698), ("fashion_mnist_cnn", 0.90, 115_194)],
)
def test_what_is_stated(name, accuracy, parameters):
    facts = models.describe(name)
    assert facts["model"] == name
    assert facts["test_accuracy"] >= accuracy
    assert facts["test_images"] == 10_000
    model = models.load(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    card = (models.FOLDER / "README.md").read_text()
    assert f"| {parameters:,} | {facts['test_accuracy']:.4f} |" in card


@pytest.mark.parametrize("name", NAMES)
def test_ready_to_explain(name):
    model = models.load(name)
    assert not any(module.training for module in model.modules())
    assert all(t.dtype == torch.float32 for t in model.parameters())
    images, labels = data.sample(models.shipped(name).dataset)
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (200, 10)
    true = logits.gather(1, labels[:, None])
    assert (true > 0).float().mean() >= 0.99


def test_accuracy_is_that_of_evaluation_mode():
    images, labels = data.sample("fashion_mnist")
    model = models.load("fashion_mnist_cnn").train()
    with torch.no_grad():
        expected = (models.load("fashion_mnist_cnn")(images).argmax(1) == labels).float().mean()
    found = training.accuracy(model, data.single_task(images, labels), batch=7)
    assert found == pytest.approx(float(expected))
    assert not model.training


def test_loads_are_independent():
    first, second = models.load("mnist_cnn"), models.load("mnist_cnn")
    with torch.no_grad():
        first.classifier[1].weight.zero_()
    assert second.classifier[1].weight.abs().sum() > 1


@pytest.fixture
def shipped_file(tmp_path):
    """A function: the file of `mnist_cnn`, its tensors changed."""
    with safe_open(models.FOLDER / "mnist_cnn.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def write(change, metadata=None):
        changed = dict(tensors)
        change(changed)
        save_file(changed, tmp_path / "changed.safetensors", metadata=metadata)
        return tmp_path / "changed.safetensors"

    return write


def test_an_unchanged_copy_loads(shipped_file):
    copy = models.load("mnist_cnn", shipped_file(lambda tensors: None))
    for key, tensor in models.load("mnist_cnn").state_dict().items():
        torch.testing.assert_close(copy.state_dict()[key], tensor, rtol=0, atol=0)


def test_wrong_tensors(shipped_file):
    bias = "classifier.3.bias"
    with pytest.raises(FileFormatError, match=rf"{bias}: missing, expected \(10,\)"):
        models.load("mnist_cnn", shipped_file(lambda tensors: tensors.pop(bias)))
    with pytest.raises(FileFormatError, match=rf"{bias}: \(9,\), expected \(10,\)"):
        path = shipped_file(lambda tensors: tensors.update({bias: torch.zeros(9)}))
        models.load("mnist_cnn", path)
    with pytest.raises(FileFormatError, match=r"extra: \(1,\), expected no such tensor"):
        path = shipped_file(lambda tensors: tensors.update(extra=torch.zeros(1)))
        models.load("mnist_cnn", path)
    with pytest.raises(FileFormatError, match=f"'{bias}' holds NaN or Inf"):
        path = shipped_file(lambda tensors: tensors.update({bias: torch.full((10,), torch.nan)}))
        models.load("mnist_cnn", path)
    with pytest.raises(FileFormatError, match="another network's tensors"):
        models.load("mnist_cnn", models.FOLDER / "fashion_mnist_cnn.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b"{" * 16])
def test_not_safetensors(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    for read in (models.load, models.describe):
        with pytest.raises(FileFormatError, match="Expected a safetensors file"):
            read("mnist_cnn", path)


def test_cut_and_missing(tmp_path):
    whole = (models.FOLDER / "mnist_cnn.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    for path in (tmp_path / "cut", tmp_path / "missing", tmp_path):
        with pytest.raises(FileFormatError, match="cannot read"):
            models.load("mnist_cnn", path)


@pytest.mark.parametrize("metadata", [None, {"training": "{"}, {"training": "3"}, {"other": "x"}])
def test_metadata_missing_or_damaged(shipped_file, metadata):
    path = shipped_file(lambda tensors: None, metadata)
    with pytest.raises(FileFormatError, match="cannot read"):
        models.describe("mnist_cnn", path)


def test_pseudo_class_loss():
    # -y_t + log(1 + e^0 + e^ln2 + e^ln4) = -ln 4 + ln 8 = ln 2 for the first, ln 8 for the second.
    logits = torch.tensor([[0.0, 2.0, 4.0]] * 2, dtype=torch.float64)
    logits[:, 1:].log_()
    labels = torch.tensor([2, 0])
    loss = training.pseudo_class_loss(logits, labels)
    expected = torch.tensor([2.0, 8.0], dtype=torch.float64).log().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)


def test_training_is_seeded_and_learns(monkeypatch, tmp_path):
    images, labels = data.sample("mnist")
    one, held = training.train("mnist_cnn", images, labels, epochs=2, seed=3, rate=2e-3)
    same, _ = training.train("mnist_cnn", images, labels, epochs=2, seed=3, rate=2e-3)
    other, _ = training.train("mnist_cnn", images, labels, epochs=2, seed=4, rate=2e-3)
    weight = one.classifier[3].weight
    torch.testing.assert_close(same.classifier[3].weight, weight, rtol=0, atol=0)
    assert not torch.equal(other.classifier[3].weight, weight)
    assert 0 <= held <= 1
    longer, _ = training.train("mnist_cnn", images, labels, epochs=14, seed=3, rate=2e-3)
    assert training.accuracy(longer, data.single_task(images, labels)) > 0.7


def test_the_training_command(monkeypatch, tmp_path, capsys):
    images, labels = data.sample("fashion_mnist")
    monkeypatch.setattr(data, "load", lambda name, split, root: (images, labels))
    path = tmp_path / "made" / "mine.safetensors"
    arguments = ["--task", "fashion_mnist", "--epochs", "1", "--seed", "5", "--out", str(path)]
    assert training.main(arguments) == 0
    assert "test accuracy" in capsys.readouterr().out
    facts = models.describe("fashion_mnist_cnn", path)
    assert (facts["seed"], facts["epochs"], facts["test_images"]) == (5, 1, 200)
    model = models.load("fashion_mnist_cnn", path)
    assert training.accuracy(model, data.single_task(images, labels)) == facts["test_accuracy"]
    json.dumps(facts)


def test_the_training_command_without_data(tmp_path, capsys):
    arguments = ["--task", "mnist", "--root", str(tmp_path), "--out", str(tmp_path / "x")]
    assert training.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: MNIST, split 'train': not found in")
    assert not (tmp_path / "x").exists()
