"""Measures world models on held-out episodes, closed loop and teacher-forced.

    embodied evaluate-world 'models={base: runs/train/base, post: runs/train/post}'
    embodied evaluate-world 'models={base: runs/train/base}' clips.path=data/libero_demos clips.starts=1 clips.limit=20

models={NAME: FOLDER}    checkpoints or training runs; the first is what the others are paired with (against=NAME)
clips.path=CACHE         a frame cache; clips.holdout and clips.split_seed as in the training run (data.holdout, seed)
clips.interactions=14    chunks of a rollout; shorter episodes are continued by holding, those frames left out
forced=false             leaves the teacher-forced rows out
run=FOLDER               where results go (runs/evaluate-world/TIME); an existing run is gone on with
policies={NAME: [SIM, WORLD]}  two runs of `embodied evaluate` each, the second with env=imagined: Pearson's r, MMRV;
                         two more with env=judged, with its classifier and without: how often that is right
out=FILE.json            figures: closed_loop.MODEL.METRIC.CAMERA, teacher_forced..., win_rate, win_rate_low

Scores: PSNR, SSIM, LPIPS (without its weights: a distance under another name), PSNR of what moved. The baselines
copy_first and copy_last are always measured. The last line is the report's path.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.evaluation.world import EvaluateWorldConfig

    registry.schema(None, "evaluate_world_schema", EvaluateWorldConfig)


def run(arguments: list[str]) -> int:
    from embodied.bench.figures import write_figures
    from embodied.config import adding, compose_config, to_dataclass
    from embodied.evaluation.world import evaluate_world

    out = [word.partition("=")[2] for word in arguments if word.startswith("out=")]
    words = [word for word in arguments if not word.startswith("out=")]
    config = to_dataclass(compose_config("evaluate_world", adding(words, "models", "policies")))
    command = shlex.join(["embodied", "evaluate-world", *arguments])
    figures: list[Any] = []
    report: Path | None = None
    if config.policies:
        figures, report = _policies(config)
    if config.models or not config.policies:
        summary = evaluate_world(config, command)
        print(summary.table())
        figures, report = [*figures, *summary.figures()], summary.folder / "report.html"
    if out:
        write_figures(Path(out[-1]), figures, command)
    print(f"\n{report}")
    return 0


def _policies(config: Any) -> tuple[list[Any], Path]:
    """Policies in the simulator and in the world model: figures, and the page with the scatter plot."""
    from embodied.bench.figures import table
    from embodied.evaluation.world_policies import evaluate_policies
    from embodied.io import write_atomic
    from embodied.paths import new_run_folder

    figures, plot = evaluate_policies(config.policies, config.without)
    print(table(figures))
    folder = Path(config.run) if config.run else new_run_folder("evaluate-world")
    head = "<!doctype html><html lang=en><meta charset=utf-8><title>Policies</title>"
    write_atomic(folder / "policies.html", f"{head}{plot}<pre>{table(figures)}</pre></html>".encode())
    return figures, folder / "policies.html"
