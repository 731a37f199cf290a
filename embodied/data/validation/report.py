"""A list of problems, each with its episode and frame, and its JSON form."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Kind(Enum):
    """What is wrong. The last three are warnings: the episode can be trained on."""

    metadata = "metadata"
    unsafe_path = "unsafe_path"
    unreadable = "unreadable"
    truncated_video = "truncated_video"
    count_mismatch = "count_mismatch"
    not_finite = "not_finite"
    time_jump = "time_jump"
    wrong_fps = "wrong_fps"
    checksum = "checksum"
    constant_action = "constant_action"
    missing_text = "missing_text"
    longer_video = "longer_video"


WARNINGS = (Kind.constant_action, Kind.missing_text, Kind.longer_video)


@dataclass(frozen=True)
class Problem:
    """`episode` None: the data set as a whole. `frame`: the first one concerned, counted in the episode."""

    kind: Kind
    message: str
    episode: int | None = None
    frame: int | None = None
    key: str | None = None

    @property
    def is_warning(self) -> bool:
        return self.kind in WARNINGS

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value, "level": "warning" if self.is_warning else "error"}

    def line(self) -> str:
        where = "" if self.episode is None else f"episode {self.episode} "
        where += "" if self.frame is None else f"frame {self.frame} "
        return f"{'warning' if self.is_warning else 'error':<8} {self.kind.value:<16} {where}{self.message}"


@dataclass
class Report:
    """The result of a validation."""

    path: str
    episodes: int = 0
    frames: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.is_warning]

    def add(
        self, kind: Kind, message: str, episode: int | None = None, frame: int | None = None, key: str | None = None
    ):
        self.problems.append(Problem(kind, message, episode, frame, key))

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "episodes": self.episodes,
            "frames": self.frames,
            "errors": len(self.errors),
            "warnings": len(self.problems) - len(self.errors),
            "counts": dict(Counter(problem.kind.value for problem in self.problems)),
            "problems": [problem.to_json() for problem in self.problems],
        }
