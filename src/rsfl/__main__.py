"""``python -m rsfl``: the command line."""

import sys

from rsfl.cli import main

if __name__ == "__main__":
    sys.exit(main())
