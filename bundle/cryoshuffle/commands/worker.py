"""The command line for a batch: it ends when the process that started it does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

from cryoshuffle.commands.cli import main


def _stop_with_input() -> None:
    """Wait until whoever started this process is gone, then ask it to stop."""
    # Not through sys.stdin, whose lock the interpreter wants at its end.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_input, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
