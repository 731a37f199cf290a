"""Compares arms trained with several seeds each, paired by episode, with intervals over seeds and episodes.

    embodied ablation 'arms={bc: [runs/evaluate/bc_0, runs/evaluate/bc_1], crl: [runs/evaluate/crl_0, ...]}'
    embodied ablation 'arms={bc: [[bc_0_object, bc_0_goal], [bc_1_object, bc_1_goal]], crl: [...]}' out=FILE.json

arms={NAME: [...]}   one entry a training seed: a run of `embodied evaluate`, or a list of them (suites, perturbations)
out=FILE.json        figures ablation.ARM_over_ARM.SUITE[.PERTURBATION]
samples, seed        of the bootstrap, which resamples training seeds and, within each task, episodes

Episodes that a run lacks, or that ended in a simulator error, are left out for all. Runs of different limits,
environments or simulator versions are refused.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.evaluation.ablation import AblationConfig

    registry.schema(None, "ablation", AblationConfig)


def run(arguments: list[str]) -> int:
    from embodied.bench.figures import table, write_figures
    from embodied.config import adding, compose_config, to_dataclass
    from embodied.evaluation.ablation import ablation

    config = to_dataclass(compose_config("ablation", adding(arguments, "arms")))
    figures = [difference.figure() for difference in ablation(config)]
    print(table(figures))
    if config.out is not None:
        write_figures(Path(config.out), figures, shlex.join(["embodied", "ablation", *arguments]))
        print(f"\n{config.out}")
    return 0
