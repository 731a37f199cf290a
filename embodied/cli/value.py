"""Draws what a value function says along recorded episodes, under right and wrong instructions.

    embodied value CHECKPOINT DATASET [DATASET ...] [held_out=0.05] [limit_per_task=2] [suites=[libero_goal]]
        [wrong=FILE.json] [stride=4] [tries=3] [runs=[RUN, ...]] [out=FOLDER]

CHECKPOINT is a checkpoint or training run of a policy with a value (PRTS); DATASETs are frame caches. Writes
curves.json, value.png and figures.json: rank correlation with progress, AUC of right against wrong instructions,
calibration of the slope against log gamma, and what time alone and a value without language would give. held_out and
seed as in training choose the episodes that training did not see. runs=[...] names evaluations of the same policy made
with values=0, for how its last value tells failures from successes.
"""

from __future__ import annotations

from pathlib import Path

from embodied.registry import Registry

UNITS = {"slope_median": "log gamma"} | dict.fromkeys(
    ("episodes", "failures", "rollout.successes", "rollout.failures"), "episodes"
)


def register(registry: Registry) -> None:
    from embodied.evaluation.value import ValueConfig

    registry.schema(None, "value", ValueConfig)


def run(arguments: list[str]) -> int:
    from embodied.bench.figures import Figure, write_figures
    from embodied.checkpoint import load_policy
    from embodied.chunk_policy import ChunkPolicy
    from embodied.config import compose_config, to_dataclass
    from embodied.data.cache import FrameCache
    from embodied.evaluation.records import RunFolder
    from embodied.evaluation.value import rollout_figures, value_curves, value_figures
    from embodied.evaluation.value_plot import draw_curves
    from embodied.io import write_json
    from embodied.paths import new_run_folder

    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) < 2:
        raise ValueError(f"value takes a checkpoint and frame caches, got {paths}: embodied value CHECKPOINT DATASET")
    config = to_dataclass(compose_config("value", [a for a in arguments if "=" in a]))
    policy = load_policy(paths[0], replan=1, device=config.device)
    if isinstance(policy, ChunkPolicy):
        policy.codec = None  # what a cache holds went through its data set's encoder already
    curves = [curve for path in paths[1:] for curve in value_curves(policy, FrameCache(path), config)]
    figures = value_figures(curves, policy.spec.extra.get("gamma"))
    if config.runs:
        figures |= rollout_figures([RunFolder(Path(run)) for run in config.runs])
    folder = Path(config.out) if config.out else new_run_folder("value")
    write_json(folder / "curves.json", [curve.to_json() for curve in curves])
    entries = [Figure(f"value.{name}", value, UNITS.get(name, "")) for name, value in figures.items()]
    write_figures(folder / "figures.json", entries, " ".join(["embodied value", *arguments]))
    draw_curves(curves, folder / "value.png")
    for name, value in figures.items():
        print(f"{name:<32} {value:.3f}")
    print(folder)
    return 0
