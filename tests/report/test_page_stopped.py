"""A signal that comes while the report is made."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from cryoshuffle.errors import FitInterruptedError
from cryoshuffle.report.page import ReportPage


def test_a_stop_while_the_report_is_made_says_that_the_result_is_there(tmp_path, monkeypatch):
    """And how the report is made; any other error passes as it is (control)."""
    for error, words in (
        (FitInterruptedError("no result"), "the result is written, its report"),
        (OSError("x"), "^x$"),
    ):
        monkeypatch.setattr("cryoshuffle.report.page.write_page", Mock(side_effect=error))
        with pytest.raises(type(error), match=words):
            ReportPage(str(tmp_path))(SimpleNamespace())
