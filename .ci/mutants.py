"""The mutation gate: every chosen fault in the sources fails a test, or is argued by name.

    python .ci/mutants.py                    the gate
    python .ci/mutants.py --list             the chosen mutants
    python .ci/mutants.py --only LABEL …     the chosen mutants of some sources
    python .ci/mutants.py --all LABEL …      every mutant of some sources

Status 1: a mutant survives that nobody argued for, an argued name is gone, or a name in the tables
of faults (`mutation/operators.py`) is nowhere in the sources, so that its faults are never tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutation.argued import ARGUED  # noqa: E402
from mutation.mutants import Mutant, chosen, mutants_of  # noqa: E402
from mutation.operators import unknown_names  # noqa: E402
from mutation.places import defined_in, homes  # noqa: E402
from mutation.runner import Outcome, Project, baseline, outcomes, preload  # noqa: E402

SOURCES = {
    "rules": ("LinearRule", 14),
    "maps": ("LinearMap", 12),
    "fold": ("fold_batch_norms", 10),
    "rewrite": ("canonical", 5),
    "linearised": ("as_linear_maps", 5),
    "inplace": ("rectify", 6),
    "analysis": ("analyse", 8),
    "gates": ("is_gate", 6),
    "targets": ("resolve_target", 10),
    "backends/forms/output": ("EpsilonForm", 5),
    "backends/forms/signs": ("ZPlusForm", 8),
    "backends/forms/joint": ("JointForm", 6),
    "backends/forms/constants": ("ZBoxForm", 5),
    "backends/forms/general": ("GeneralForm", 5),
    "backends/forms/layer": ("Layer.widened", 3),
    "backends/products": ("Products", 10),
    "backends/blockwise": ("_runs", 5),
    "backends/pointwise": ("flush_tiny_", 8),
    "backends/aten": ("AtenBackend", 3),
    "backends/onednn": ("fused_adjoint", 6),
    "recurrent/reduced": ("Scan", 12),
    "recurrent/aten": ("is_reduced", 10),
    "recurrent/steps": ("stepwise_relevance", 6),
    "recurrent/tape": ("Tape", 6),
    "recurrent/fused": ("fused_scan", 3),
    "layers/base": ("unbroadcast", 6),
    "layers/pool": ("LinearPooling", 5),
    "layers/winner": ("Winner", 5),
    "layers/linear": ("LinearLayer", 3),
    "layers/recurrent": ("RecurrentLayer", 0),
    # the oracle
    "reference": ("movement_relevance", 10),
    "oracle": ("_one_target", 6),
    "recurrent/naive": ("naive_forward", 9),
    "recurrent/oracle": ("relevance_of_samples", 2),
    "backends/naive": ("ReferenceBackend", 2),
}
"""Mutants wanted of a file, which is found by something that it defines."""

OTHERS = "@register(", 6
"""All other files of the library with this in them, and mutants wanted of each."""

TESTS = [
    "test_layer_and_hand_written_cell_agree",
    "test_float32_stays_within_its_error_bound",
    "test_no_part_of_the_whole_weight",
    "test_rectified_layers_equal_the_reference",
    "test_ties_go_to_the_first_index",
    "test_functional_residual",
    "test_reduced_recurrence_equals_the_loop",
    "test_box_by_channel",
    "test_lrp_0_is_gradient_times_input",
    "test_a_rule_without_a_form_of_its_own",
    "test_bfloat16_products_add_the_bias_in_float32",
    "test_quotients",
    "test_what_is_known_of_signs",
    "test_a_relu_overwrites_only_what_no_rule_reads",
    "test_two_by_two_by_hand",
    "test_k_targets_a_sample",
    "test_linear_takes_any_leading_axes",
]
"""The test files that meet the mutants, each found by one of its tests."""

DIRECT = [
    "test_lrp_0_is_gradient_times_input",
    "test_a_rule_without_a_form_of_its_own",
    "test_bfloat16_products_add_the_bias_in_float32",
    "test_quotients",
    "test_what_is_known_of_signs",
    "test_a_relu_overwrites_only_what_no_rule_reads",
]
"""Those among them whose every test meets a mutant before all others."""


def sources(root: Path) -> dict[str, tuple[str, int]]:
    """The files to mutate and the number of mutants wanted of each, by label.

    Labels that have come to share a file are one, the first.

    Raises:
        LookupError: what marks a file is defined nowhere, or in several files.
    """
    files = sorted((root / "relprop").rglob("*.py"))
    places = homes(defined_in(root, files), (name for name, _ in SOURCES.values()))
    counts, labels = Counter[str](), {}
    for (label, (_, count)), place in zip(SOURCES.items(), places, strict=True):
        labels.setdefault(place, label)
        counts[place] += count
    mark, count = OTHERS
    for path in files:
        place = str(path.relative_to(root))
        if place not in labels and mark in path.read_text(encoding="utf-8"):
            labels[place], counts[place] = f"layers/{path.stem}", count
    return {label: (place, counts[place]) for place, label in labels.items() if counts[place]}


def project(root: Path) -> Project:
    """What the gate mutates and which tests it runs."""
    tests = sorted((root / "tests").rglob("test_*.py"))
    defined = defined_in(root, tests)
    return Project(
        root=root,
        sources={label: path for label, (path, _) in sources(root).items()},
        tests=list(dict.fromkeys(homes(defined, TESTS))),
        direct=list(dict.fromkeys(homes(defined, DIRECT))),
        preload=[
            "torch", "numpy", "safetensors.torch", "torch.export", "torch._dynamo",
            "torch.fx.experimental.symbolic_shapes", "torch.func", "hypothesis",
            "PIL.Image", "sympy",
        ],
    )  # fmt: skip


def main() -> int:
    """Run the gate; returns the exit status."""
    parser = argparse.ArgumentParser(description="Break the sources; the tests must notice.")
    parser.add_argument("--list", action="store_true", help="print the chosen mutants and stop")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="these sources alone")
    parser.add_argument("--all", nargs="+", metavar="LABEL", help="every mutant of these sources")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--share", type=float, default=0.07, help="of all tests for each mutant")
    options = parser.parse_args()
    try:
        whole = project(ROOT)
    except LookupError as error:
        print(error)
        return 1
    unknown = unknown_names(text(whole, label) for label in whole.sources)
    if unknown:
        print("in mutation/operators.py, but nowhere in the sources:", *unknown, sep="\n  ")
        return 1
    every = generate(whole)
    counts = {label: count for label, (_, count) in sources(ROOT).items()}
    picked = [m for label in options.only or every for m in chosen(every[label], counts[label])]
    if options.all:
        picked = [m for label in options.all for m in every[label]]
    if options.list:
        print("\n".join(m.shown for m in picked))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return gate(whole, picked, every, ARGUED, options.jobs, options.share)


def generate(project: Project) -> dict[str, list[Mutant]]:
    """Every mutant of every source."""
    return {label: mutants_of(label, text(project, label)) for label in project.sources}


def text(project: Project, label: str) -> str:
    """The text of a source."""
    return (project.root / project.sources[label]).read_text(encoding="utf-8")


def gate(
    project: Project,
    picked: Sequence[Mutant],
    every: Mapping[str, Sequence[Mutant]],
    argued: Mapping[str, str],
    jobs: int,
    share: float,
) -> int:
    """Run the chosen mutants and print what became of them; returns the exit status."""
    start = time.monotonic()
    preload(project)
    known = baseline(project, jobs)
    if known.failed:
        print("the tests fail without any fault:", *sorted(known.failed), sep="\n  ")
        return 1
    timed = f"{time.monotonic() - start:.0f} s"
    print(f"{len(known.seconds)} tests, {timed}; {len(picked)} mutants", flush=True)
    found = []
    open_ = [m for m in picked if m.name not in argued]
    for outcome in outcomes(project, open_, known, jobs, share):
        found.append(outcome)
        if outcome.state != "killed":
            print(f"{outcome.state}: {outcome.mutant.shown}", flush=True)
    names = {m.name for mutants in every.values() for m in mutants}
    gone = sorted(set(argued) - names)
    survivors = sorted(o.mutant.name for o in found if o.state == "survived")
    print(table(picked, found, argued))
    print(f"{time.monotonic() - start:.0f} s")
    if survivors:
        print("\nsurvived (strengthen a test, or argue in .ci/mutation/argued.py):")
        print(*survivors, sep="\n")
    if gone:
        print("\nargued, but no longer a mutant:", *gone, sep="\n")
    return 1 if survivors or gone else 0


def table(picked: Sequence[Mutant], found: Sequence[Outcome], argued: Mapping[str, str]) -> str:
    """Killed, argued and survived by source file."""
    rows: dict[str, Counter[str]] = {m.label: Counter() for m in picked}
    for outcome in found:
        state = "killed" if outcome.state == "timeout" else outcome.state
        rows[outcome.mutant.label][state] += 1
    for mutant in picked:
        rows[mutant.label]["argued"] += mutant.name in argued
    rows["all"] = sum(rows.values(), Counter())
    columns = "killed", "argued", "survived"
    lines = [f"\n{'':34}" + "".join(f"{c:>10}" for c in columns)]
    for label, counts in rows.items():
        lines.append(f"{label:34}" + "".join(f"{counts[c]:10}" for c in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
