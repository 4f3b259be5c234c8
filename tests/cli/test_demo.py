"""The demo: every method is in it, the figure is drawn, the table is what it says."""

from pathlib import Path

import pytest

from relprop import methods
from relprop.cli import demo


def test_every_method_is_shown() -> None:
    named = {name for name in methods.names() if "<" not in name}
    # the first is simple_taylor, the second needs its alpha and beta: the rows lrp_alpha…_beta…
    assert named - {"gradient_x_input", "alpha_beta"} <= set(demo.LABELS)


def test_figure(tmp_path: Path) -> None:
    files = demo.draw(tmp_path / "new" / "figure", ["gradient", "deep_taylor"])
    assert sorted(file.suffix for file in files) == [".pdf", ".png"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_main_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"gradient": "Gradient", "lrp_zplus": "LRP-z⁺"}
    monkeypatch.setattr(demo, "LABELS", labels)
    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(demo, "draw", lambda path: [path.with_suffix(".png")])
    assert demo.main(["--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(tuple(labels.values()))]
    assert len(rows) == 2
    for row in rows:
        ours, naive, ratio = (float(cell.replace(",", "")) for cell in row.split()[-3:])
        assert ours > 0 and naive > 0
        assert ratio == pytest.approx(ours / naive, rel=0.2, abs=0.1)
