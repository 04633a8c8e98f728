"""The command line by itself: how it ends, and how fast it answers."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import Mock

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FileError, FitInterruptedError


def test_a_stop_is_a_stop_whatever_it_interrupts(tmp_path, monkeypatch, capsys):
    """Where it comes while a checkpoint is written, what torch says of the torn archive is no mistake of the user's."""

    def stopped(options):
        try:
            try:
                raise FitInterruptedError("stopped; go on with --resume")
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")  # as torch's archive does when it is left half written
        except RuntimeError as error:
            raise FileError("state.pt: the checkpoint cannot be written") from error

    monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", stopped)
    assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == 3
    assert capsys.readouterr().err.strip() == "cryoshuffle: stopped; go on with --resume"
    for error, code in ((FileError("no room"), 2), (MemoryError(), 2)):
        monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", Mock(side_effect=error))
        assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == code


def test_help_imports_nothing_heavy():
    """``--help`` and the package itself leave torch and MONAI alone, so that they answer at once."""
    code = (
        "import sys, cryoshuffle.commands.cli as c; c.build_parser().format_help();"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
