"""The file format of measured figures: flat JSON, one entry a figure, and what they depend on beside them.

    {"physics_speedup": {"value": 2.1, "unit": "x", "baseline": 43.0, "note": "..."}, ...,
     "machine": {...}, "versions": {...}, "commit": "...", "date": "...", "command": "..."}

docs/results holds published figures in the same form. Figures taken over from other files keep what they depend on:
"sources" lists it, with the figures' names.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from embodied.evaluation.versions import versions
from embodied.io import write_json

ORIGIN = ("machine", "versions", "commit", "date", "command")
META = (*ORIGIN, "sources")


@dataclass(frozen=True)
class Figure:
    """One measured number. `baseline`: what it is compared with, in the unit that the note names; None without one."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.name in META or not all(part.isidentifier() for part in self.name.split(".")):
            raise ValueError(
                f"a figure's name should be dotted identifiers other than {', '.join(META)}, got {self.name!r}"
            )
        if not math.isfinite(self.value):
            raise ValueError(f"figure {self.name} should be a finite number, got {self.value}: nothing was measured")


class Bench(Protocol):
    """What a `bench` config builds. `say` shows a line of progress."""

    def run(self, say: Any) -> list[Figure]: ...


def to_json(figures: Iterable[Figure], command: str, sources: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The content of a figures file. `sources`: `origins` of taken figures. ValueError for two figures of one name."""
    content: dict[str, Any] = {}
    for figure in figures:
        if figure.name in content:
            raise ValueError(f"figure names should differ, got {figure.name!r} twice")
        entry = asdict(figure)
        del entry["name"]
        content[figure.name] = entry
    installed = dict(versions())
    content["machine"] = machine()
    content["commit"] = installed.pop("commit", None)
    content["versions"] = installed
    content["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    content["command"] = command
    if sources:
        content["sources"] = list(sources)
    return content


def write_figures(
    path: Path, figures: Iterable[Figure], command: str, sources: Sequence[Mapping[str, Any]] = ()
) -> None:
    write_json(path, to_json(figures, command, sources))


def read_figures(path: Path) -> list[Figure]:
    """The figures of a file. ValueError when an entry is not one."""
    content = json.loads(path.read_text())
    figures = []
    for name, entry in content.items():
        if name in META:
            continue
        if not isinstance(entry, Mapping) or set(entry) != {"value", "unit", "baseline", "note"}:
            raise ValueError(f"{path}: {name} should have value, unit, baseline and note, got {entry!r}")
        figures.append(Figure(name, **entry))
    return figures


def origins(path: Path) -> list[dict[str, Any]]:
    """What a file's figures depend on: machine, versions, commit, date, command, and the names of the figures."""
    content = json.loads(path.read_text())
    taken = list(content.get("sources", ()))
    known = {name for source in taken for name in source["figures"]}
    own = [name for name in content if name not in META and name not in known]
    return [*([{"figures": own, **{key: content[key] for key in ORIGIN}}] if own else []), *taken]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"system": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    memory = Path("/proc/meminfo")
    if memory.exists():
        found["memory_gb"] = round(int(memory.read_text().split()[1]) / 1e6, 1)
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(figures: Iterable[Figure]) -> str:
    """The figures as aligned text."""
    rows = [("figure", "value", "unit", "baseline", "note")]
    for figure in figures:
        baseline = "" if figure.baseline is None else _number(figure.baseline)
        rows.append((figure.name, _number(figure.value), figure.unit, baseline, figure.note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]), row[3].rjust(widths[3])]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
