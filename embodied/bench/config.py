"""Settings of `embodied bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchConfig:
    """`bench`: the chosen benchmark's own settings (config group bench)."""

    bench: dict[str, Any] = field(default_factory=dict)
    out: str | None = None  # the figures file; runs/bench/TIME/figures.json
