"""What is made of the records: exponents, goals, the report, the README's section, the figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import performance, recording, report
from benchmarks.recording import FIELDS, ROOT
from benchmarks.report import Goal
from benchmarks.tables import cells_of, number


def row(**columns: Any) -> dict[str, str]:
    base = dict.fromkeys(FIELDS, "") | {
        "status": "ok", "precision": "highest", "level": "model", "library": "relprop",
        "device": "a processor, 2 cores", "threads": "2", "versions": "torch 2",
        "commit": "abc1234",
        "time": "2030-01-02T03:04:05+00:00", "command": "python -m benchmarks --suite window",
    }  # fmt: skip
    return {key: str(value) for key, value in (base | columns).items()}


def model_rows(method: str = "epsilon_plus", network: str = "vgg16") -> list[dict[str, str]]:
    cell = f"model/{network}/{method}/b4/224/highest"
    found = []
    for library, ratio, peak in (("gradient", 1, 1), ("relprop", 1.25, 0.9), ("zennit", 3.3, 3)):
        found.append(
            row(
                cell=cell,
                workload=network,
                method=method,
                library=library,
                batch=4,
                size="224 px",
                explanations_per_s=2.6 / ratio,
                median_s=4 * ratio / 2.6,
                spread=0.02,
                x_gradient=ratio,
                x_floor=1.1 * ratio,
                peak_bytes=peak * 2**28,
                x_gradient_peak=peak,
                error=1e-6,
                tolerance=1e-5,
            )
        )
    return found


def curve(power: float, needed: float, library: str = "relprop") -> list[dict[str, str]]:
    return [
        row(
            level="growth",
            cell="growth/batch",
            axis="batch",
            workload="vgg16",
            library=library,
            method="epsilon_plus",
            value=n,
            median_s=0.3 * n**power,
            multiplications=7 * n**needed,
            peak_bytes=100 * n**needed,
            at_once_bytes=10 * n**needed,
        )
        for n in (1, 2, 4, 8)
    ]


def test_an_exponent_is_the_power_of_a_power_law() -> None:
    fit = report.exponent([1, 2, 4, 8], [5 * n**1.7 for n in (1, 2, 4, 8)])
    assert fit.slope == pytest.approx(1.7, abs=1e-12) and fit.error < 1e-12
    # logarithms 0, 1, 2 against 0, 1, 3 (base 2): slope 3/2, residuals 1/6, -1/3, 1/6
    bent = report.exponent([1, 2, 4], [1, 2, 8])
    assert bent.slope == pytest.approx(1.5)
    assert bent.error == pytest.approx((1 / 36 + 1 / 9 + 1 / 36) ** 0.5 / 2**0.5)


@pytest.mark.parametrize(
    ("power", "needed", "flag"),
    [(1.0, 1.0, False), (1.09, 1.0, False), (1.2, 1.0, True), (1.2, 2.0, False)],
)
def test_growth_above_the_arithmetic_is_flagged(power: float, needed: float, flag: bool) -> None:
    rows = curve(power, needed)
    (line,) = report.fits(rows)
    assert line["time flag"] is flag and line["memory flag"] is False
    table = report.growth_table(rows)
    assert f"n^{power:.2f} ± 0.00 | n^{needed:.2f}" in table
    assert table.splitlines()[-1].endswith("| time |" if flag else "| no |")


def test_curves_of_libraries_are_fitted_apart_and_wrong_points_left_out() -> None:
    rows = [*curve(1.0, 1.0), *curve(1.5, 1.0, "zennit")]
    rows[1]["status"] = "wrong"
    found = {line["library"]: line for line in report.fits(rows)}
    assert found["relprop"]["points"] == "1, 4, 8" and found["zennit"]["points"] == "1, 2, 4, 8"
    assert found["zennit"]["time flag"] and not found["relprop"]["time flag"]


def test_goals_met_missed_and_not_measured() -> None:
    ratio = report._column("x_gradient")
    cell = "model/vgg16/epsilon_plus/"
    goals = [
        Goal("met", cell, ratio, 1.3), Goal("missed", cell, ratio, 1.2),
        Goal("none", "model/other/", ratio, 1.0),
        Goal("Zennit", cell, report._against("zennit"), 0.5),
    ]  # fmt: skip
    values = [value for _, value in report.goals(model_rows(), goals)]
    assert values[:3] == [1.25, 1.25, None]
    assert values[3] == pytest.approx(1.25 / 3.3)
    wrong = model_rows()
    wrong[1]["status"] = "wrong"
    assert report.goals(wrong, goals[:1])[0][1] is None


def test_bfloat16_is_compared_with_float32() -> None:
    goal = Goal("bf16", "precision/", report._by_precision, 0.5)
    rows = [
        row(level="precision", cell="precision/x", precision=precision, explanations_per_s=rate)
        for precision, rate in (("highest", 10), ("medium", 16))
    ]
    assert report.goals(rows, [goal])[0][1] == 10 / 16


def test_the_page_says_in_words_what_is_missed() -> None:
    job = row(level="stream", workload="cnn", method="lrp", library="relprop job", size="9 images",
              note="read 5% explain 90% write 4%")  # fmt: skip
    rows = [*model_rows(), *model_rows("epsilon_alpha2_beta1"), *curve(1.3, 1.0), job]
    page = report.page(rows)
    assert "- cnn, lrp, relprop job, 9 images: read 5% explain 90% write 4%" in page
    assert "| VGG-16, ε-plus: time over the gradient's | ≤ 1.35 | 1.25, met |" in page
    assert "| VGG-16, LRP-ε: time over the gradient's | ≤ 1.05 | not measured |" in page
    assert "2030-01-02, a processor, 2 cores, 2 threads; torch 2; commit abc1234" in page
    assert "| vgg16 | epsilon_plus | zennit | highest | 0.788 | 1269 | 2 % | 3.30 |" in page
    assert "## Growth" in page and "| time |" in page


def test_the_origin_of_rows_of_two_days_and_budgets_is_one_line() -> None:
    second = row(time="2030-01-03T00:00:00+00:00", commit="def5678",
                 command="python -m benchmarks --suite window --budget 90")  # fmt: skip
    (line,) = report.origin([row(), second])
    assert line.startswith("2030-01-02 to 2030-01-03, ") and "commit abc1234, def5678" in line
    assert line.endswith("`python -m benchmarks --suite window`")
    assert len(report.origin([row(), row(threads=1)])) == 2


def test_a_row_that_is_wrong_says_so_in_the_table() -> None:
    shown = cells_of(row(status="wrong", error=0.25, tolerance=0.001, workload="vgg16"))
    assert shown[4] == "wrong by 0.250, allowed 0.00100" and shown[5:11] == [""] * 6


def test_numbers_as_they_are_printed() -> None:
    values = (0, 1, 0.999, 12.345, 123.4, 12345.6, 123456, 0.00123, 1.2e-7, -2.5, "", None)
    expected = ["0.00", "1.00", "0.999", "12.3", "123", "12346", "1.23e+05", "0.00123", "1.20e-07",
                "-2.50", "", ""]  # fmt: skip
    assert [number(value) for value in values] == expected


# ---- the README's section


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "readme_performance", ROOT / ".ci" / "readme_performance.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    for level in {row["level"] for row in rows}:
        own = [row for row in rows if row["level"] == level]
        recording.write_record(folder / f"suite-{level}-cpu.csv", own)


def test_the_section_is_written_from_the_records_and_checked(tmp_path: Path) -> None:
    write(tmp_path, [*model_rows(), *model_rows("epsilon_alpha2_beta1")])
    readme = tmp_path / "README.md"
    tool = script()
    readme.write_text(f"# a\n\n{tool.BEGIN}\nold\n{tool.END}\n\nrest\n")
    options = ["--readme", str(readme), "--records", str(tmp_path)]
    assert tool.main([*options, "--check"]) == 1
    assert tool.main(options) == 0 and tool.main([*options, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("# a\n\n") and text.endswith("\n\nrest\n") and "old" not in text
    assert "| VGG-16 | ε-plus | 2.60 | 1.25 | 3.30 | – | – | – | 1.38 | 0.900 | 3.00 |" in text
    assert "2030-01-02" in text and "2 cores" in text and "`python -m benchmarks" in text
    record = tmp_path / "suite-model-cpu.csv"
    record.write_text(record.read_text().replace(",1.25,", ",1.5,"))
    assert tool.main([*options, "--check"]) == 1


def test_the_readme_is_what_the_records_give() -> None:
    assert script().main(["--check"]) == 0


def test_misses_are_said_in_the_section(tmp_path: Path) -> None:
    rows = model_rows()
    rows[1] |= {"x_gradient": "1.5", "status": "ok"}
    write(tmp_path, rows)
    text = performance.section(tmp_path)
    assert "VGG-16, ε-plus: time over the gradient's is 1.50, the goal was at most 1.35" in text
    rows[2]["status"] = "left out: ImportError: none"
    write(tmp_path, rows)
    assert "| 1.50 | left out |" in performance.section(tmp_path)


def test_without_records_the_section_says_so(tmp_path: Path) -> None:
    assert performance.section(tmp_path).startswith("No benchmark has been recorded yet")


def test_a_readme_without_the_markers_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# nothing\n")
    with pytest.raises(SystemExit, match="expected the lines"):
        script().main(["--readme", str(readme), "--records", str(tmp_path)])
    assert readme.read_text() == "# nothing\n"


# ---- the figures


def test_figures_hold_what_the_records_hold(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from figures import benchmarks as figures

    rows = [*model_rows(), *model_rows("epsilon_alpha2_beta1"), *curve(1.0, 1.0),
            *[r | {"level": "layer", "workload": "vgg16 conv1_2", "method": "ZPlus"}
              for r in model_rows()],
            *[r | {"level": "precision"} for r in model_rows()]]  # fmt: skip
    for name, draw in figures.FIGURES.items():
        assert draw([]) is None, name
    figure = figures.throughput(rows)
    assert figure is not None
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches)
    expected = sorted(2 * [2.6, 2.6 / 1.25, 2.6 / 3.3])
    assert heights == pytest.approx(expected)
    cost = figures.rules(rows)
    assert cost is not None
    bars = sorted(bar.get_height() for bar in cost.axes[0].patches)
    assert bars == pytest.approx([1.25, 3.3])
    (floor,) = cost.axes[0].collections
    assert floor.get_segments()[0][0][1] == pytest.approx(1 / 1.1)
    time = figures.growth(rows)
    assert time is not None
    measured, needed = time.axes[0].lines
    assert list(measured.get_xdata()) == [1, 2, 4, 8]
    assert list(measured.get_ydata()) == pytest.approx([0.3, 0.6, 1.2, 2.4])
    assert list(needed.get_ydata()) == pytest.approx([0.3, 0.6, 1.2, 2.4])
    write(tmp_path, rows)
    assert figures.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".pdf")}
    assert names == {f"benchmarks_{n}.{kind}" for n in figures.FIGURES for kind in ("png", "pdf")}


def test_the_report_is_a_file_and_an_empty_folder_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--records", str(tmp_path)]) == 1
    assert "no records in" in capsys.readouterr().out
    write(tmp_path, model_rows())
    assert report.main(["--records", str(tmp_path)]) == 0
    assert (tmp_path / "report-cpu.md").read_text() == report.page(model_rows())
