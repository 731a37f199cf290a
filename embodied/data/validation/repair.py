"""Writes a data set again without what is broken: first the list of what is left out, then the data set.

An episode is cut before the first bad frame when enough of it stays, else dropped. A cut episode no longer ends where
its demonstration ended, so its success becomes unknown. The data set itself is never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied.data.source import Source
from embodied.data.validation.report import Kind, Problem, Report
from embodied.io import write_json

CUTTABLE = (Kind.truncated_video, Kind.count_mismatch, Kind.not_finite, Kind.time_jump)
LIST = "repair.json"


@dataclass(frozen=True)
class Repair:
    """keep: episode position -> frames kept from its start; left_out: what is not, with the reasons."""

    keep: dict[int, int]
    left_out: list[dict[str, Any]]

    def to_json(self, path: str) -> dict[str, Any]:
        return {"source": path, "kept": len(self.keep), "left_out": self.left_out}


def plan_repair(report: Report, lengths: list[int], keep_share: float, warnings: bool) -> Repair:
    """What to keep of episodes with these lengths. warnings: also drop episodes that only have warnings.

    keep_share: smallest part of an episode worth keeping.
    """
    keep, left_out = {}, []
    for position, length in enumerate(lengths):
        reasons = [p for p in report.problems if p.episode == position and (warnings or not p.is_warning)]
        frames = _frames_kept(reasons, length)
        frames = frames if frames >= max(1, keep_share * length) else 0
        if frames:
            keep[position] = frames
        if frames < length:
            entry = {"episode": position, "frames": length, "kept": frames, "dropped": [frames, length]}
            left_out.append({**entry, "reasons": [reason.to_json() for reason in reasons]})
    return Repair(keep, left_out)


def _frames_kept(reasons: list[Problem], length: int) -> int:
    kept = length
    for reason in reasons:
        if reason.kind is Kind.longer_video:
            continue
        kept = min(kept, reason.frame if reason.kind in CUTTABLE and reason.frame is not None else 0)
    return kept


def write_repaired(
    open_episodes: Callable[[], Source], repair: Repair, path: str, out: Path, progress: Callable | None = None
) -> Path:
    """OUT.repair.json beside the new data set first, then the data set `out`."""
    from embodied.data.importers.convert import import_source

    if not repair.keep:
        raise ValueError(f"{path}: no episode can be kept, so nothing was written")
    write_json(out.with_name(f"{out.name}.{LIST}"), repair.to_json(path))
    return import_source(open_episodes(), out, repair.keep, progress=progress)
