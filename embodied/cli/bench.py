"""Measures figures with their baselines in one run.

    embodied bench sim out=FILE.json
    embodied bench sim bench.rounds=2 bench.suites=[libero_spatial]

The name is a config of the group bench; bench.KEY=... sets its own keys. Prints the figures as a table and writes them
as flat JSON (figure: value, unit, baseline, note) with machine, versions, commit and date.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.bench.config import BenchConfig

    registry.schema(None, "bench_schema", BenchConfig)


def run(arguments: list[str]) -> int:
    from embodied.bench.figures import table, write_figures
    from embodied.config import compose_config, to_dataclass
    from embodied.paths import new_run_folder
    from embodied.registry import build

    names = [argument for argument in arguments if "=" not in argument]
    if len(names) != 1:
        raise ValueError(f"bench takes one name, got {names}: embodied bench sim out=FILE.json")
    overrides = [argument for argument in arguments if "=" in argument]
    config = to_dataclass(compose_config("bench", [f"bench={names[0]}", *overrides]))
    out = Path(config.out) if config.out else new_run_folder("bench") / "figures.json"
    figures = build(config.bench).run(lambda line: print(line, file=sys.stderr, flush=True))
    write_figures(out, figures, shlex.join(["embodied", "bench", *arguments]))
    print(table(figures))
    print(f"\n{out}")
    return 0
