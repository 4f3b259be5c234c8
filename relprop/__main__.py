"""`python -m relprop`: the command line."""

import sys

from relprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
