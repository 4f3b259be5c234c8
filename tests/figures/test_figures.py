"""The study's figures: what they show, what they leave out, that nothing is cut."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from figures import common as sharing
from figures import (
    cosine_similarity,
    majority,
    pixel_flipping,
    relevance_over_time,
    single_images,
    task,
)
from relprop import data, image
from relprop.errors import FileFormatError
from relprop.study import networks as study
from relprop.study.evaluation import LABELS, Cell, Job, Setting
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.reported import COSINE


class Fixed(torch.nn.Module):
    """A classifier that gives every sample the next of some classes."""

    def __init__(self, classes):
        super().__init__()
        self.classes = torch.tensor(classes)

    def forward(self, images):
        return torch.nn.functional.one_hot(self.classes[: len(images)], 10).float()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Everything in an empty folder, data as on a machine that has none."""
    monkeypatch.setattr(data, "load", missing)
    return sharing.Places(
        out=tmp_path / "out", weights=tmp_path, cells=tmp_path / "cells", samples=8
    )


def missing(name, *_, **__):
    raise FileFormatError(f"{name}: not here")


def write_weights(places, name, own_task):
    """Untrained weights whose logits are above 0."""
    torch.manual_seed(0)
    model = study.build(name, *study.steps_and_width(own_task))
    with torch.no_grad():
        model.output.weight.abs_()
    save_file(model.state_dict(), places.weights / f"{name}-{own_task}.safetensors")


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the figure of heatmaps, which is drawn all the same."""
    calls, draw = [], image.heatmap_figure

    def spy(rows, columns, **options):
        calls.append((rows, columns, options))
        return draw(rows, columns, **options)

    monkeypatch.setattr(image, "heatmap_figure", spy)
    return calls


@pytest.fixture
def charts(monkeypatch):
    """The Matplotlib figures that were written, by name."""
    found, save = {}, sharing.Places.save

    def spy(self, figure, name):
        found[name] = figure
        return save(self, figure, name)

    monkeypatch.setattr(sharing.Places, "save", spy)
    return found


def anything(samples, networks, classes, first=1000):
    """The first samples of the classes, right or wrong: untrained networks get few right."""
    own = {label: iter((samples.labels == label).nonzero()[:, 0].tolist()) for label in classes}
    return [next(own[label]) for label in classes]


def uncut(file, margin=4):
    """The frame of a PNG is white, so nothing runs over the edge."""
    pixels = np.asarray(Image.open(file).convert("L"))
    edges = (pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:])
    return all((edge == 255).all() for edge in edges)


def test_lowest_takes_what_all_networks_classify_correctly():
    labels = torch.tensor([5, 7, 5, 5, 7, 5])
    samples = data.single_task(torch.zeros(6, 1, 28, 28), labels)
    one, other = Fixed([0, 7, 5, 5, 7, 5]), Fixed([5, 0, 5, 0, 7, 5])
    assert sharing.lowest(samples, [one], [5, 7, 5]) == [2, 1, 3]
    assert sharing.lowest(samples, [one, other], [5, 7, 5]) == [2, 4, 5]
    with pytest.raises(LookupError, match="class 7"):
        sharing.lowest(samples, [one, other], [7, 7])
    with pytest.raises(LookupError, match="class 5"):
        sharing.lowest(samples, [one], [5], first=2)


def test_single_images_has_the_study_s_rows_and_columns(places, drawn, monkeypatch, capsys):
    for own_task in ("mnist", "fashion_mnist"):
        write_weights(places, "deep", own_task)  # captured sooner than ConvDeep
    monkeypatch.setattr(single_images, "MODEL", "deep")
    monkeypatch.setattr(single_images, "lowest", anything)
    files = single_images.draw(places)
    ((rows, columns, options),) = drawn
    assert [label for label, _ in rows] == [
        "Sensitivity Analysis", "Guided Backprop", "Simple Taylor Decomposition",
        "Deep Taylor Decomposition", "LRP-α1.2β0.2", "LRP-α1.5β0.5", "LRP-α2β1",
    ]  # fmt: skip
    assert options["column_groups"] == [("MNIST", 4), ("Fashion-MNIST", 4)]
    assert columns == [
        "Digit 0", "Digit 3", "Digit 4", "Digit 7", "T-shirt/top", "Sandal", "Bag", "Ankle boot",
    ]  # fmt: skip
    assert all((rows[number][1] >= 0).all() for number in (0, 1, 3))
    assert (rows[2][1] < 0).any()
    assert [file.name for file in files] == ["single_images.pdf", "single_images.png"]
    assert uncut(files[1])
    assert "MNIST: shipped samples 0, 3, 4, 7" in capsys.readouterr().out


def test_single_images_without_networks_draws_nothing(places, capsys):
    assert single_images.draw(places) == []
    assert "missing: ConvDeep for Fashion-MNIST: not trained, left out" in capsys.readouterr().out
    assert not places.out.exists()


def test_majority_shows_the_architectures_that_are_trained(places, drawn, monkeypatch, capsys):
    for own_task in majority.CLASSES:
        write_weights(places, "r_lstm_sd", own_task)
    write_weights(places, "conv_deep", "mnist_maj")
    monkeypatch.setattr(majority, "lowest", anything)
    files = majority.draw(places)
    ((rows, columns, options),) = drawn
    assert [label for label, _ in rows] == ["R-LSTM-SD"] * 4
    assert [heading for heading, _ in options["row_groups"]] == [LABELS[key] for key in TABLE]
    assert columns == ["Digit 1", "Digit 9", "Digit 0", "Sandal", "Sneaker", "Sandal"]
    assert options["column_groups"] == [("MNIST-MAJ", 3), ("FashionMNIST-MAJ", 3)]
    assert all(found.shape == (6, 1, 28, 84) for _, found in rows)
    assert uncut(files[1])
    said = capsys.readouterr().out
    assert "missing: ConvDeep is trained for one task alone, left out" in said
    assert "missing: Conv⁺Deep, ConvR-LSTM-SD, Conv⁺R-LSTM-SD for MNIST-MAJ: not trained" in said
    assert "missing: ConvDeep, Conv⁺Deep, ConvR-LSTM-SD, Conv⁺R-LSTM-SD for FashionMNIST" in said
    assert "missing: MNIST-MAJ's test images" in said


def test_majority_without_networks_draws_nothing(places):
    assert majority.draw(places) == []


@pytest.fixture
def measured(monkeypatch):
    """Cells in the place of measured ones, of two architectures on each task."""

    def cells(self, own_task, models):
        return {
            model: Cell(
                Setting(own_task, model, "test", 10),
                "",
                "",
                0.9,
                {key: 0.5 + number / 10 for number, key in enumerate(TABLE)},
                {},
                {},
                {key: [[odd + step / 100 for step in range(12)] for odd in range(3)]
                 for key in TABLE},
                0.0,
            )
            for model in models
            if model in ("deep", "r_lstm")
        }  # fmt: skip

    monkeypatch.setattr(sharing.Places, "measured", cells)


def test_the_chart_has_a_filled_and_an_open_marker_for_each_value(places, measured, charts):
    files = cosine_similarity.draw(places)
    figure = charts["cosine_similarity"]
    assert len(figure.axes) == 8
    for axes, (own_task, method) in zip(
        figure.axes, [(t, m) for t in cosine_similarity.TASKS for m in TABLE], strict=True
    ):
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        reported = [line for line in marks if line.get_fillstyle() == "none"]
        assert {(line.get_ydata()[0], line.get_xdata()[0]) for line in reported} == {
            (y, COSINE[own_task, model][method]) for y, model in enumerate(cosine_similarity.MODELS)
        }
        here = {(m.get_ydata()[0], m.get_xdata()[0]) for m in marks if m not in reported}
        value = 0.5 + TABLE.index(method) / 10
        assert here == {(cosine_similarity.MODELS.index(m), value) for m in ("deep", "r_lstm")}
    assert uncut(files[1])


def test_relevance_over_time_draws_a_line_for_each_trained_architecture(places, measured, charts):
    files = relevance_over_time.draw(places)
    assert list(charts) == ["relevance_over_time_mnist", "relevance_over_time_fashion"]
    for figure in charts.values():
        assert len(figure.axes) == 12
        for number, axes in enumerate(figure.axes):
            lines = [line for line in axes.lines if len(line.get_xdata()) == 12]
            assert [line.get_label() for line in lines] == ["Deep", "R-LSTM"]
            assert lines[0].get_ydata()[3] == number // 4 + 0.03
    assert len(files) == 4 and uncut(files[1]) and uncut(files[3])


def test_charts_without_networks_are_not_drawn(places, charts):
    assert cosine_similarity.draw(places) == relevance_over_time.draw(places) == []
    assert pixel_flipping.draw(places) == [] and not charts


def test_measured_takes_whole_cells_first_and_measures_the_rest(places, monkeypatch):
    for name in ("deep", "shallow"):
        write_weights(places, name, "mnist_maj")
    whole = Job(Setting("mnist_maj", "deep", "sample", 200), places.cells, None, places.weights)
    monkeypatch.setattr(Job, "known", lambda self: "known" if self == whole else None)
    asked = []
    monkeypatch.setattr(sharing, "evaluate", lambda jobs, workers: asked.extend(jobs) or {})
    assert places.measured("mnist_maj", ("deep", "r_lstm", "shallow")) == {"deep": "known"}
    assert [(job.setting.model, job.setting.samples) for job in asked] == [("shallow", 8)]


def test_flipping_curves_start_at_the_logit_and_end_alike(places, monkeypatch):
    monkeypatch.setattr(pixel_flipping, "MODEL", "deep")
    write_weights(places, "deep", "mnist")
    network, samples = places.networks("mnist", ["deep"])["deep"], places.task("mnist").subset(8)
    found = pixel_flipping.curves(network, samples)
    assert list(found) == [*LABELS, "random"]
    images, labels, _ = samples.batch(slice(None))
    with torch.no_grad():
        start = network(images).gather(1, labels[:, None]).mean().item()
        end = network(torch.full_like(images, -1)).gather(1, labels[:, None]).mean().item()
    for curve in found.values():
        assert len(curve) == 50
        assert curve[0].item() == pytest.approx(start, rel=1e-5)
        assert curve[-1].item() == pytest.approx(end, rel=1e-5)


def test_the_figure_of_the_task_shows_strips_and_labels(places, charts):
    files = task.draw(places)
    titles = [axes.get_title() for axes in charts["task"].axes]
    assert titles[:6] == ["T = 1", "T = 4", "T = 7"] * 2
    assert "MNIST-MAJ: label “Digit 1”" in titles
    assert [len(axes.images) for axes in charts["task"].axes] == [1, 4, 7] * 2 + [12] * 4
    for axes in charts["task"].axes[6:]:
        words = [text.get_text() for text in axes.texts]
        assert sorted(words) == ["other class", "same class", "same class"]
    assert uncut(files[1])


def test_a_script_is_told_where_and_says_what_it_wrote(tmp_path, capsys):
    seen = []

    def draw(places):
        seen.append(places)
        return [places.out / "figure.pdf", places.out / "figure.png"]

    files = sharing.run(draw, "A figure.", ["--out", str(tmp_path), "--samples", "7"])
    assert files == [tmp_path / "figure.pdf", tmp_path / "figure.png"]
    assert (seen[0].out, seen[0].samples) == (tmp_path, 7)
    assert capsys.readouterr().out == f"wrote {files[0]}\nwrote {files[1]}\n"
