"""``python -m cryoshuffle``: the command line where no script is installed."""

from __future__ import annotations

import sys

from cryoshuffle.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
