"""Compares two evaluation runs of the same episodes.

    embodied compare RUN_A RUN_B [out=FILE.json] [only_common=true] [confidence=0.95] [seed=0] [samples=10000]

Episodes are paired by suite, task, initial state, seed, perturbation and instruction; runs whose episodes, step
limits, environments or simulator versions differ are refused. Prints, per task and overall, both success rates, the
paired difference with Tango's score interval and a bootstrap stratified by task, and the exact McNemar p-value.
only_common=true pairs the episodes that both runs have and leaves the others out.
"""

from __future__ import annotations

from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.evaluation.compare import CompareConfig

    registry.schema(None, "compare", CompareConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.evaluation.compare import compare_runs, print_comparison
    from embodied.io import write_json

    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) != 2:
        raise ValueError(f"compare takes two run folders, got {paths}: embodied compare RUN_A RUN_B")
    config = to_dataclass(compose_config("compare", [a for a in arguments if "=" in a]))
    comparison = compare_runs(Path(paths[0]), Path(paths[1]), config)
    print_comparison(comparison)
    if config.out is not None:
        write_json(Path(config.out), comparison.to_json())
        print(f"\n{config.out}")
    return 0
