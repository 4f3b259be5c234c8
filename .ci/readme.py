"""Run the Python blocks of a Markdown file, in order, in one namespace, in an empty folder."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(path: Path) -> int:
    """Execute every ```python block of `path`; returns how many there were."""
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    count = 0
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        code = compile("\n" * line + match.group(1), str(path), "exec")
        exec(code, namespace)
        count += 1
    return count


def main() -> int:
    """Run the file named on the command line; fails when it holds no block."""
    path = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        count = run_blocks(path)
        os.chdir(path.parent)
    print(f"{path.name}: {count} Python blocks ran")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
