"""The README's performance section, written from the records: figures, date, machine, command.

python .ci/readme_performance.py            rewrite the section
python .ci/readme_performance.py --check    fail if it is not what the records give
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.performance import section  # noqa: E402
from relprop.atomic import replacing  # noqa: E402

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def rewritten(text: str, body: str) -> str:
    """The text with what stands between the markers replaced.

    Raises:
        SystemExit: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"README.md: expected the lines {BEGIN} and {END}, once each")
    return text.partition(BEGIN)[0] + f"{BEGIN}\n{body}\n{END}" + text.partition(END)[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite or check; 1 if the check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "records")
    options = parser.parse_args(argv)
    text = options.readme.read_text(encoding="utf-8")
    expected = rewritten(text, section(options.records))
    if expected == text:
        return 0
    if options.check:
        print(f"{options.readme.name}: its performance section is not what the records give; run "
              "python .ci/readme_performance.py")  # fmt: skip
        return 1
    with replacing(options.readme) as beside:
        beside.write_text(expected, encoding="utf-8")
    print(f"{options.readme.name}: performance section rewritten")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
