"""What a run leaves for people: log, pictures, page, provenance."""

from __future__ import annotations

from cryoshuffle.report.error_map import ErrorMapWriter
from cryoshuffle.report.log import History, LossTerms, NoiseReport, Progress, RunLog, TensorBoardLog, Timer
from cryoshuffle.report.opening import RunOpening
from cryoshuffle.report.page import ReportPage
from cryoshuffle.report.pictures import FitPreview, ResultPreview
from cryoshuffle.report.provenance import InputSnapshot, Provenance, checksums
from cryoshuffle.report.residual import ResidualWriter
from cryoshuffle.report.survival import SurvivalTable

__all__ = [
    "ErrorMapWriter",
    "FitPreview",
    "History",
    "InputSnapshot",
    "LossTerms",
    "NoiseReport",
    "Progress",
    "Provenance",
    "ReportPage",
    "ResidualWriter",
    "ResultPreview",
    "RunLog",
    "RunOpening",
    "SurvivalTable",
    "TensorBoardLog",
    "Timer",
    "checksums",
]
