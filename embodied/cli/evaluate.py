"""Measures a policy's success rate in simulation.

    embodied evaluate policy=expert env=libero_object tasks=[0,1] episodes=5 workers=2
    embodied evaluate policy=random env=robosuite tasks=[0] episodes=20
    embodied evaluate policy=replay policy.source=runs/evaluate/TIME env=libero_object

env=NAME policy=NAME   what is evaluated where; env.KEY=... and policy.KEY=... set their own keys
tasks=[...]            indices within the suite (all), episodes=N of each, from initial state first=0, seed=7
starts=auto            stored initial states where the suite has them; random draws scenes from the seed
workers=2              simulator processes; batching=single makes results independent of how many, bit for bit
replan=N               actions executed between two looks (the policy's own), max_steps=N (the protocol's own)
instruction="..."      words said to the policy in place of the task's
perturbations=[none]   variants of every episode
videos=6               rollouts shown in the report, failures first
run=FOLDER             where records go (runs/evaluate/TIME); an existing run is resumed, and finished episodes kept
retry_errors=true      when resuming, tries again what ended in simulator errors

Success, failure and simulator error are counted apart. The last line is the report's path. Exit status 1: no episode
could be counted.
"""

from __future__ import annotations

import shlex

from embodied.registry import Registry

TARGETS = (
    "embodied.evaluation.rollout.Rollout",
    "embodied.evaluation.rollout.Probe",
    "embodied.evaluation.videos.Replayer",
)


def register(registry: Registry) -> None:
    from embodied.evaluation.config import EvaluateConfig

    registry.target(*TARGETS)
    registry.schema(None, "evaluate_schema", EvaluateConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.evaluation.evaluate import evaluate

    config = to_dataclass(compose_config("evaluate", arguments))
    summary = evaluate(config, command=shlex.join(["embodied", "evaluate", *arguments]))
    print(summary.table())
    if summary.all.error:
        print(f"\n{summary.all.error} episodes ended in simulator errors and are in no rate: see {summary.folder}")
    print(f"\n{summary.report or summary.folder / 'summary.json'}")
    return 0 if summary.all.counted else 1
