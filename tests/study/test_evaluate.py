"""The study's table: its cells, their files, the reasons it gives, `relprop evaluate`."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from relprop import Explainer, data, metrics
from relprop._version import __version__
from relprop.cli import main
from relprop.errors import FileFormatError, InputError
from relprop.study import networks as study
from relprop.study.evaluation import (
    SAMPLES,
    Cell,
    Explained,
    Job,
    Setting,
    evaluate,
    measure,
    report,
)
from relprop.study.evaluation.cells import fingerprint, read_cell, write_cell
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.report import ordering, reasons
from relprop.study.evaluation.reported import COSINE, REFERENCES
from relprop.study.networks.card import ACCURACY

COUNT = 6


def network(name="deep", seed=0):
    """An untrained network whose logits are mostly above 0, so that relevance flows."""
    torch.manual_seed(seed)
    model = study.build(name, 12, 7).eval()
    with torch.no_grad():
        model.output.weight.abs_()
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of untrained weights of Deep and Shallow for MNIST-MAJ."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("deep", "shallow"):
        save_file(network(name).state_dict(), folder / f"{name}-mnist_maj.safetensors")
    return folder


def setting(model="deep", task="mnist_maj", samples=COUNT, dtype="float32"):
    return Setting(task, model, "sample", samples, dtype)


def job(folder, weights, model="deep", task="mnist_maj"):
    return Job(setting(model, task), folder, weights=weights, batch=4)


def cell_of(model="deep", task="mnist_maj", accuracy=None, split="test", samples=10_000, **cosine):
    """A cell with the reported values, but for those given."""
    key = (task, model)
    values = {**COSINE[key], **cosine}
    return Cell(
        Setting(task, model, split, samples),
        "weights",
        "0",
        ACCURACY.get(key, 0.9) if accuracy is None else accuracy,
        values,
        dict.fromkeys(TABLE, 0.9),
        {"deep_taylor": 1e-7, "lrp_alpha1.5_beta0.5": 3e-7},
        {key: [[1 / 12] * 12] * 3 for key in TABLE},
        1.0,
    )


def by_setting(*cells):
    return {cell.setting: cell for cell in cells}


@pytest.fixture(scope="module")
def measured():
    """A cell of six samples, in batches of four and two, and what it was measured on."""
    model, task = network(), data.task("mnist_maj", "sample").subset(COUNT)
    return model, task, measure(model, task, setting(), 4)


def test_reported_values_are_those_of_the_study():
    assert len(COSINE) == 18
    assert list(COSINE["mnist_maj", "shallow"].values()) == [0.727, 0.756, 0.478, 0.496]
    assert COSINE["fashion_mnist_maj", "r_lstm_sd"]["lrp_alpha1.5_beta0.5"] == 0.953
    assert COSINE["mnist_maj", "conv_plus_r_lstm_sd"]["guided_backprop"] == 0.887
    total = sum(value for row in COSINE.values() for value in row.values())
    assert total == pytest.approx(56.607, abs=1e-9)
    assert len(ACCURACY) == 17 and ("fashion_mnist_maj", "conv_plus_r_lstm_sd") not in ACCURACY
    assert {model for _, model in COSINE} < set(study.ARCHITECTURES)


def test_references_are_those_of_even_one_sided_and_last_block_relevance():
    expected = [math.sqrt(2 / 3), math.sqrt(1 / 2), math.sqrt(2) / 3]
    assert list(REFERENCES.values()) == pytest.approx(expected, abs=5e-5)


def test_a_cell_holds_what_methods_and_metrics_give_alone(measured):
    model, task, cell = measured
    images, labels, masks = task.batch(slice(None))
    with torch.no_grad():
        logits = model(images)
    assert cell.accuracy == (logits.argmax(1) == labels).double().mean().item()
    start = logits.gather(1, labels[:, None])[:, 0].relu()
    assert (start > 0).any()
    for key in TABLE:
        kind = ("lrp", 1.5, 0.5) if key.startswith("lrp") else key
        relevance = Explainer(model, study.method("deep", kind))(images, target=labels)
        if key == "guided_backprop":
            relevance = relevance**2
        cosine = metrics.block_cosine(relevance, masks).mean().item()
        share = metrics.share_in_blocks(relevance, masks).median().item()
        assert cell.cosine[key] == pytest.approx(cosine, abs=1e-6)
        assert cell.share[key] == pytest.approx(share, abs=1e-5)
        time = metrics.relevance_over_time(relevance, 12)
        for odd in range(3):
            own = time[masks[:, odd] == 0]
            expected = own.mean(0).tolist() if len(own) else [0.0] * 12
            assert cell.over_time[key][odd] == pytest.approx(expected, abs=1e-5)
        if key in cell.conservation:
            error = metrics.conservation_error(relevance, start).max().item()
            assert cell.conservation[key] == pytest.approx(error, abs=1e-6)
    assert set(cell.conservation) == {"deep_taylor", "lrp_alpha1.5_beta0.5"}


@pytest.mark.parametrize("name", ["shallow", "r_lstm"])
def test_relevance_is_conserved_in_double_precision(name):
    task = data.task("mnist_maj", "sample").subset(3)
    cell = measure(network(name), task, setting(name, dtype="float64"))
    assert max(cell.conservation.values()) < 1e-4


def test_explained_returns_logits_and_maps_in_the_order_asked():
    model = network()
    images, labels, _ = data.task("mnist_maj", "sample").batch(slice(2))
    logits, maps = Explained(model, "deep", ("deep_taylor", "sensitivity"))(images, labels)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images))
    assert list(maps) == ["deep_taylor", "sensitivity"]
    assert all(found.shape == images.shape for found in maps.values())
    with pytest.raises(InputError, match="no method 'saliency'"):
        Explained(model, "deep", ("saliency",))


def test_cells_come_back_from_their_files(tmp_path):
    cell = cell_of()
    cell = dataclasses.replace(cell, version=__version__)
    write_cell(cell, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist_maj-deep-test-10000-float32.json"]
    assert read_cell(cell.setting, "weights", tmp_path) == cell
    assert read_cell(cell.setting, "other weights", tmp_path) is None
    assert read_cell(setting(), "weights", tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"setting": {}}', "null"])
def test_damaged_cells_are_measured_anew(tmp_path, text):
    setting().path(tmp_path).write_text(text)
    assert read_cell(setting(), "weights", tmp_path) is None


def test_cells_of_another_version_are_measured_anew(tmp_path):
    cell = cell_of()
    write_cell(cell, tmp_path)
    assert read_cell(cell.setting, "weights", tmp_path) is None


def test_a_fingerprint_tells_weights_apart():
    model = network()
    same = fingerprint(model)
    assert fingerprint(network()) == same
    assert fingerprint(network(seed=1)) != same
    with torch.no_grad():
        model.output.weight[0, 0] += 1e-6
    assert fingerprint(model) != same


def test_an_interrupted_evaluation_goes_on(tmp_path, weights, monkeypatch):
    jobs = [job(tmp_path, weights, name) for name in ("deep", "shallow")]
    run, told = Job.run, []

    def interrupted(self):
        if self.setting.model == "shallow":
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(jobs)
    monkeypatch.setattr(Job, "run", run)
    cells = evaluate(jobs, told=lambda setting, cell, known: told.append((setting.model, known)))
    assert told == [("deep", True), ("shallow", False)]
    assert [setting.model for setting in cells] == ["deep", "shallow"]
    assert len(list(tmp_path.iterdir())) == 2

    def unwanted(self):
        raise AssertionError("measured twice")

    monkeypatch.setattr(Job, "run", unwanted)
    assert evaluate(jobs) == cells


def test_what_is_not_trained_is_missing_in_words(tmp_path, weights):
    (missing,) = evaluate([job(tmp_path, weights, "r_lstm")]).values()
    assert isinstance(missing, str) and "r_lstm-mnist_maj.safetensors" in missing
    assert not list(tmp_path.iterdir())


def test_missing_data_is_an_error_that_says_how_to_get_it(tmp_path, weights):
    own = Setting("mnist_maj", "deep", "test", 5)
    with pytest.raises(FileFormatError, match="Get it in one of these ways"):
        evaluate([Job(own, tmp_path, data=tmp_path, weights=weights)])


def test_folders_of_relprop_train_are_understood(tmp_path):
    folder = tmp_path / "deep-mnist_maj"
    folder.mkdir()
    save_file(network().half().state_dict(), folder / "weights.safetensors")
    found = job(tmp_path, tmp_path).network().state_dict()
    for name, tensor in network().half().float().state_dict().items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("facts", [{"start_from": "conv_deep"}, {"start_from": ""}, {}, None])
def test_a_cell_says_what_its_network_started_from(tmp_path, facts):
    metadata = None if facts is None else {"training": json.dumps(facts)}
    save_file(network().state_dict(), tmp_path / "deep-mnist_maj.safetensors", metadata)
    cell = job(tmp_path, tmp_path).run()
    assert cell.start_from == (facts or {}).get("start_from", "")
    assert job(tmp_path, tmp_path).known() == cell


@pytest.mark.slow
def test_processes_give_the_same_cells(tmp_path, weights):
    names = ("deep", "shallow")
    here = evaluate([job(tmp_path / "here", weights, name) for name in names])
    apart = evaluate([job(tmp_path / "apart", weights, name) for name in names], workers=2)
    for (one, first), (other, second) in zip(here.items(), apart.items(), strict=True):
        assert one == other
        assert second.cosine == pytest.approx(first.cosine, abs=1e-6)
        assert second.accuracy == first.accuracy


def test_values_near_the_reported_ones_need_no_reason():
    near = cell_of(sensitivity=0.719 + 0.079, deep_taylor=0.681 - 0.049, accuracy=0.982 - 0.0099)
    assert reasons(near.setting, near) == []


def test_values_far_from_the_reported_ones_have_one():
    far = cell_of(sensitivity=0.719 - 0.081, deep_taylor=0.681 + 0.051, accuracy=0.982 - 0.011)
    (reason,) = reasons(far.setting, far)
    assert reason.startswith("SA -0.081, DTD +0.051, accuracy -0.011: one training here")
    few = cell_of(sensitivity=0.5, samples=1000)
    assert "1000 samples here, 10,000 there" in reasons(few.setting, few)[0]
    begun = dataclasses.replace(far, start_from="conv_deep")
    assert (
        "one training here that began with ConvDeep's weights, the"
        in reasons(far.setting, begun)[0]
    )


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("shallow", "inhibitory"),
        ("conv_plus_deep", "conserve"),
        ("conv_plus_r_lstm_sd", "conserve"),
    ],
)
def test_rows_that_the_original_got_wrong_say_so(model, word):
    cell = cell_of(model, deep_taylor=0.95, guided_backprop=0.1)
    unknown, known = sorted(reasons(cell.setting, cell), key=lambda text: word in text)
    assert unknown.startswith("GB -") and "no error is known" in unknown
    assert known.startswith("DTD +") and word in known and "rules.Joint" in known
    assert "LRP-α1.5β0.5 +0.000" in known


def test_the_order_of_architectures():
    lrp = "lrp_alpha1.5_beta0.5"
    models = ("deep", "conv_deep", "r_lstm", "r_lstm_sd")
    rising = by_setting(*(cell_of(m, **{lrp: v}) for m, v in zip(models, (0.7, 0.8, 0.9, 0.885))))
    assert ordering(rising).endswith("R-LSTM 0.900 < R-LSTM-SD 0.885: holds")
    falling = by_setting(*(cell_of(m, **{lrp: v}) for m, v in zip(models, (0.7, 0.8, 0.9, 0.87))))
    assert ordering(falling).endswith("does not hold")
    assert "not to be told without R-LSTM-SD" in ordering(
        by_setting(*(cell_of(m) for m in models[:3]))
    )


def test_the_report_shows_measured_beside_reported_and_what_is_missing():
    cell = cell_of("conv_deep", deep_taylor=0.7512, accuracy=0.9907)
    cells = {
        cell.setting: cell,
        Setting("mnist_maj", "r_lstm", "test", 10_000): "no trained weights come with relprop",
        Setting("fashion_mnist_maj", "deep", "test", 10_000): "not there",
    }
    text = report(cells)
    row, shares = (line for line in text.splitlines() if line.startswith("  ConvDeep  "))
    assert shares.split() == ["ConvDeep", *["90.0", "%"] * 4]
    assert row.split() == [
        "ConvDeep", "0.991", "(0.992)", "0.753", "(0.753)", "0.792", "(0.792)", "0.751", "(0.769)",
        "0.770", "(0.770)",
    ]  # fmt: skip
    assert "  R-LSTM: no trained weights come with relprop" in text
    assert "FashionMNIST-MAJ\n  no trained network to measure" in text
    assert "1 of 3 cells, 10000 samples of split test" in text
    assert "at most 3.0e-07 (ConvDeep, MNIST-MAJ, LRP-α1.5β0.5)" in text


def test_rows_without_a_reported_accuracy_have_a_dash():
    cell = cell_of("conv_plus_r_lstm_sd", "fashion_mnist_maj")
    assert "0.900 (–)" in report(by_setting(cell))


def test_the_command_measures_prints_and_remembers(tmp_path, weights, capsys):
    words = ["evaluate", "--split", "sample", "--samples", "3", "--models", "deep,r_lstm"]
    words += ["--tasks", "mnist_maj", "--weights", str(weights), "--out", str(tmp_path)]
    assert main([*words, "--workers", "1"]) == 1
    first = capsys.readouterr()
    assert "MNIST-MAJ, Deep: " in first.err and "measured before" not in first.err
    assert main(words) == 1
    second = capsys.readouterr()
    assert "MNIST-MAJ, Deep: measured before" in second.err
    assert second.out == first.out
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["setting"]["samples"] == 3


def test_the_command_without_networks_says_so(tmp_path, capsys):
    words = [
        "evaluate",
        "--models",
        "conv_r_lstm",
        "--weights",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    assert main([*words, "--quiet", "--tasks", "mnist_maj"]) == 2
    found = capsys.readouterr()
    assert "no trained network to measure" in found.out and not found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "deeep"], "--models: no 'deeep'; there are shallow, deep"),
        (["--models", "lenet"], "--models: no 'lenet'; there are shallow, deep"),
        (["--tasks", "mnist"], "--tasks: no 'mnist'; there are mnist_maj"),
        (["--samples", "0"], "--samples 0: expected 1 or more"),
        (["--workers", "-1"], "--workers -1"),
        (["--batch-size", "0"], "--batch-size 0"),
    ],
)
def test_options_that_make_no_sense(words, said, capsys):
    assert main(["evaluate", *words]) == 2
    assert said in capsys.readouterr().err


def test_more_samples_than_there_are_means_all(tmp_path, weights):
    from relprop.cli.arguments import parser
    from relprop.cli.evaluate import _jobs

    words = ["evaluate", "--samples", "20000", "--split", "sample", "--models", "deep"]
    (first, second) = _jobs(parser().parse_args(words))
    assert first.setting.samples == SAMPLES["sample"] == 200
    assert second.setting.task == "fashion_mnist_maj"
