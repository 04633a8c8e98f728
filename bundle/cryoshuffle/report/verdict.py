"""The one word on a result, and the one reason for it that matters most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "look", "bad"]
Word = Literal["good", "look", "doubt"]
# What findings may be of, from what spoils a result most to what spoils it least.
SUBJECTS = (
    "empty",
    "painted",
    "against",
    "noise",
    "wedge",
    "power",
    "excess",
    "place",
    "map",
    "uneven",
    "kept",
    "removed",
    "shared",
    "alike",
    "time",
    "share",
    "seams",
    "stripes",
    "planes",
    "halves",
    "measured",
)
# What a good result is said to lack a check of, by the subject of that.
_CHECKED = {"noise": "the blind spot", "power": "the power of the residual", "stripes": "stripes of the lattice"}


@dataclass(frozen=True)
class Finding:
    """One thing that a page says of a result.

    Attributes:
        level: ``ok``, ``look`` where a person should look for himself, ``bad`` where the result is doubtful.
        words: one or two sentences.
        subject: one of :data:`SUBJECTS`; of two findings of one level the one whose subject comes first weighs more.
        advice: a sentence on what to do about it; empty where nothing is to be done.
    """

    level: Level
    words: str
    subject: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """What all findings come to.

    Attributes:
        word: ``good``, ``look`` or ``doubt``.
        reason: a sentence or two.
        advice: a sentence on what to do.
    """

    word: Word
    reason: str
    advice: str

    @property
    def words(self) -> str:
        """In one line."""
        return f"{self.word}. {self.reason} {self.advice}"


def verdict(findings: Sequence[Finding]) -> Verdict:
    """The word on a result, and the reason that matters most.

    Args:
        findings: of a result, in any order.

    Invariant:
        Any ``bad`` finding makes it ``doubt``, any ``look`` without a ``bad`` makes it ``look``, and none of both makes
        it ``good``, with the checks that were not made. The reason is the finding of that level whose subject comes
        first in :data:`SUBJECTS`.
    """
    words: tuple[tuple[Level, Word], ...] = (("bad", "doubt"), ("look", "look"))
    for level, word in words:
        listed = [one for one in findings if one.level == level]
        if listed:
            first = min(listed, key=lambda one: SUBJECTS.index(one.subject))
            return Verdict(word, first.words, first.advice)
    missing = [name for subject, name in _CHECKED.items() if subject not in {one.subject for one in findings}]
    more = f" Not checked: {', '.join(missing)}." if missing else ""
    good = f"Every check is within its limits.{more}" if findings else "Nothing speaks against it."
    return Verdict("good", good, "Look at the result beside the tomogram before you use it.")
