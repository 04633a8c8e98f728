"""Scores of what a program finds: average precision, recall and precision, of picked positions and of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

# What templates find, of the molecules of the package: the ribosome, the largest and last in the order of names.
TEMPLATE = 3


@dataclass(frozen=True)
class Detections:
    """What was found, with the truth about it.

    Attributes:
        scores: of what was found; higher is surer.
        correct: whether each is right.
        positives: how many there are to find.
    """

    scores: np.ndarray
    correct: np.ndarray
    positives: int

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds from the highest to the lowest, and recall and precision at each.

        Invariant:
            What has the same score is taken together, so an order within it changes nothing.
        """
        order = np.argsort(-self.scores, kind="stable")
        scores, right = self.scores[order], np.cumsum(self.correct[order])
        last = np.flatnonzero(np.diff(scores, append=-np.inf))
        return scores[last], right[last] / max(1, self.positives), right[last] / (last + 1)

    def average_precision(self) -> float:
        """Mean precision over recall; what is never found counts as 0.

        Example:
            >>> Detections(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 2).average_precision()
            0.8333333333333333
        """
        _, recall, precision = self.curve()
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))

    def best_threshold(self) -> float:
        """The threshold with the highest harmonic mean of recall and precision, which of voxels is Dice."""
        thresholds, recall, precision = self.curve()
        if not len(thresholds):
            return 0.0
        return float(thresholds[np.argmax(recall * precision / np.maximum(recall + precision, 1e-12))])

    def at(self, threshold: float) -> dict[str, float]:
        """Recall, precision and their harmonic mean (``dice``) of all that scores at least a threshold."""
        kept = self.scores >= threshold
        right = int(self.correct[kept].sum())
        recall, precision = right / max(1, self.positives), right / max(1, int(kept.sum()))
        dice = 2 * right / max(1, int(kept.sum()) + self.positives)
        return {"recall": recall, "precision": precision, "dice": dice}


def match(
    picks: np.ndarray,
    scores: np.ndarray,
    targets: np.ndarray,
    radii: np.ndarray,
    ignored: np.ndarray | None = None,
    ignored_radii: Sequence[float] | np.ndarray = (),
) -> Detections:
    """Compare picks with the particles that there are.

    From the surest on, a pick takes the nearest particle within that particle's radius that no other has taken. A
    second pick of a particle is wrong. A pick that takes none, but lies within an ignored particle, does not count.

    Args:
        picks: positions ``(n, 3)``.
        scores: of the picks.
        targets: positions ``(m, 3)`` to find.
        radii: of the targets, in the unit of the positions.
        ignored: positions of particles that are neither right nor wrong.
        ignored_radii: of them.
    """
    order = np.argsort(-scores, kind="stable")
    free = np.ones(len(targets), dtype=bool)
    correct, counted = np.zeros(len(picks), dtype=bool), np.ones(len(picks), dtype=bool)
    near = _neighbours(picks, targets, radii)
    excused = _neighbours(picks, np.empty((0, 3)) if ignored is None else ignored, ignored_radii)
    for index in order:
        candidates = [(distance, target) for distance, target in near[index] if free[target]]
        if candidates:
            free[min(candidates)[1]] = False
            correct[index] = True
        elif not near[index] and excused[index]:
            counted[index] = False
    return Detections(scores[counted], correct[counted], len(targets))


def _neighbours(
    picks: np.ndarray, targets: np.ndarray, radii: Sequence[float] | np.ndarray
) -> list[list[tuple[float, int]]]:
    """For each pick the targets within whose radius it lies, with their distances."""
    if not len(picks) or not len(targets):
        return [[] for _ in range(len(picks))]
    radii = np.asarray(radii)
    lists = cKDTree(targets).query_ball_point(picks, float(radii.max()))
    pairs = []
    for pick, near in zip(picks, lists, strict=True):
        distances = np.linalg.norm(targets[near] - pick, axis=1)
        pairs.append([(float(d), int(t)) for d, t in zip(distances, near, strict=True) if d <= radii[t]])
    return pairs


def voxels(scores: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> Detections:
    """Compare a map of scores with a mask.

    Args:
        scores: ``(Z, Y, X)``.
        truth: True where there is something to find.
        ignored: True where it does not matter what the map has.
    """
    return Detections(scores[~ignored], truth[~ignored], int((truth & ~ignored).sum()))
