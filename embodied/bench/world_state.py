"""`embodied bench world_state`: does post-training on own rollouts beat the same compute spent otherwise?

The small fair case: a world model of the arm's state (`world_model=persist_state`) on demonstrations. For each seed:
one base; from it, contrastive post-training; then more teacher forcing, and more teacher forcing with more history
noise, each for as many CPU seconds as post-training took, or for `more_steps`: what else runs on a machine changes the
CPU seconds of a step. All are measured closed loop on held-out episodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.bench.figures import Figure
from embodied.checkpoint import list_steps, load_checkpoint
from embodied.data.cache import FrameCache, is_cache
from embodied.evaluation.world_clips import ClipConfig, list_clips, read_clips, stream
from embodied.evaluation.world_statistics import bootstrap_mean_of
from embodied.io import read_lines
from embodied.schema import STATE

MORE_SEED = 1000
BRANCHES = ("base", "contrastive", "teacher_forcing", "history_noise")


class WorldStateBench:
    """See configs/bench/world_state.yaml. An existing `folder` is gone on with."""

    def __init__(
        self,
        folder: str = "runs/bench/world_state",
        cache: str = "data/libero_demos",
        data: str = "libero_demos",
        seeds: Sequence[int] = (0, 1, 2),
        base_steps: int = 36000,
        post_steps: int = 1500,
        more_steps: int | None = None,
        batch_size: int = 256,
        base_lr: float = 1e-3,
        more_lr: float = 3e-4,
        post_lr: float = 3e-4,
        history_noise: float = 0.6,
        holdout: float = 0.15,
        interactions: int = 14,
        starts: int = 4,
        overrides: Sequence[str] = (),
        post_overrides: Sequence[str] = (),
    ) -> None:
        self.settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.folder, self.seeds = Path(folder), list(seeds)

    def run(self, say: Any) -> list[Figure]:
        torch.set_num_threads(1)
        rows = []
        for seed in self.seeds:
            runs = self._train(seed, say)
            rows.append({branch: self._measure(run, seed) for branch, run in runs.items()})
            say(f"seed {seed}: " + ", ".join(f"{k} {np.mean(v['error']):.4f}" for k, v in rows[-1].items()))
            spread = [line["spread_neg_log_error"] for line in read_lines(runs["contrastive"] / "metrics.jsonl")
                      if "spread_neg_log_error" in line]  # fmt: skip
            rows[-1]["contrastive"]["spread"] = np.array(spread)
        return figures(rows)

    def _train(self, seed: int, say: Any) -> dict[str, Path]:
        """The four runs of one seed."""
        s, folder = self.settings, self.folder / f"seed{seed}"
        runs = {branch: folder / branch for branch in BRANCHES}
        base = ["world_model=persist_state", "stage=base", f"stage.steps={s['base_steps']}", f"stage.lr={s['base_lr']}"]
        say(f"seed {seed}: base")
        self._command(seed, runs["base"], [*base, *s["overrides"]], s["batch_size"])
        post = [f"world_model={runs['base']}", "stage=posttrain_world", f"stage.steps={s['post_steps']}"]
        post += [f"stage.lr={s['post_lr']}", f"+world_model.change.posttrain.seed={seed}", *s["post_overrides"]]
        say(f"seed {seed}: contrastive")
        self._command(seed, runs["contrastive"], post, 64)
        budget = _spent(runs["contrastive"])
        steps = s["more_steps"] or max(1, round(budget / (_spent(runs["base"]) / s["base_steps"])))
        more = [f"world_model={runs['base']}", "stage=base", f"stage.steps={steps}", f"stage.lr={s['more_lr']}"]
        more += ["stage.warmup=0"]
        say(f"seed {seed}: {steps} more steps of teacher forcing, twice, for {budget:.0f} CPU seconds")
        self._command(seed, runs["teacher_forcing"], more, s["batch_size"])
        noisy = [*more, f"+world_model.change.world.history_noise={s['history_noise']}"]
        self._command(seed, runs["history_noise"], noisy, s["batch_size"])
        return runs

    def _command(self, seed: int, run: Path, words: Sequence[str], batch_size: int) -> None:
        """Trains, or where the run is done compares its settings: other ones are refused."""
        from embodied.cli.train import run as train

        s = self.settings
        data = [f"data={s['data']}", f"data.sets.{s['data']}.path={s['cache']}", f"data.holdout={s['holdout']}"]
        if is_cache(Path(s["cache"])):
            data.append(f"data.sets.{s['data']}.source=null")
        quiet = ["log.every=20", "log.progress=false", "evaluate_every=0", "validation_batches=1", "keep=1"]
        drawn = seed if run.name == "base" else MORE_SEED + seed  # going on should not see base's first batches again
        length = [f"stage.batch_size={batch_size}", f"seed={drawn}", f"data.split_seed={seed}", "threads=1", "cpu=true"]
        length.append("checkpoint_every=100000")
        train([*words, *data, *quiet, *length, f"run={run}"])

    def _measure(self, run: Path, seed: int) -> dict[str, np.ndarray]:
        """Mean square error (clips,) closed loop and of the first chunk, in normalised units, and position in mm."""
        s = self.settings
        loaded, cache = load_checkpoint(run), FrameCache(s["cache"])
        world = loaded.model.make_world_model(loaded.pipeline, run.name, loaded.digest)
        config = ClipConfig(s["cache"], s["holdout"], seed, s["interactions"], s["starts"])
        clips = list_clips(cache, config, world.chunk * world.skip)
        batch = read_clips(cache, clips, world, s["interactions"])
        truth = world.encode(batch)[0][:, world.known :].numpy()
        imagined = world.rollout(batch, s["interactions"], [stream(clip, 0) for clip in clips])[STATE].numpy()
        weight = batch["valid"].astype(np.float64)
        square = ((imagined - truth) ** 2).mean(2)
        metres = [loaded.pipeline.inverse({STATE: value})[STATE][..., :3] for value in (imagined, truth)]
        gap = np.linalg.norm(metres[0] - metres[1], axis=-1) * 1000
        return {
            "error": (square * weight).sum(1) / weight.sum(1),
            "one_chunk": square[:, : world.chunk].mean(1),
            "position_mm": (gap * weight).sum(1) / weight.sum(1),
            "episode": np.array([clip.episode for clip in clips]),
        }


def figures(rows: Sequence[dict[str, dict[str, np.ndarray]]]) -> list[Figure]:
    """Means over seeds, and how often post-training wins a clip, with an interval over episodes."""
    found = []
    for branch in BRANCHES:
        for name, unit in (("error", ""), ("one_chunk", ""), ("position_mm", "mm")):
            values = [float(np.mean(row[branch][name])) for row in rows]
            note = f"closed loop, seeds {', '.join(f'{value:.4g}' for value in values)}"
            base = float(np.mean([np.mean(row["base"][name]) for row in rows]))
            found.append(Figure(f"state.{branch}.{name}", float(np.mean(values)), unit, base, note))
    for other in ("base", "teacher_forcing", "history_noise"):
        name = "state.win_rate" if other == "base" else f"state.win_rate_over_{other}"
        found += _wins(rows, other, name)
    spread = float(np.mean([np.mean(row["contrastive"]["spread"]) for row in rows]))
    found.append(Figure("state.reward_spread", spread, "nats", None, "deviation of -log error within a group"))
    return found


def _wins(rows: Sequence[dict[str, dict[str, np.ndarray]]], other: str, name: str) -> list[Figure]:
    wins = np.concatenate([(row["contrastive"]["error"] < row[other]["error"]).astype(float) for row in rows])
    groups = np.concatenate([row["base"]["episode"] + 10**6 * i for i, row in enumerate(rows)])
    interval = bootstrap_mean_of(wins, groups)
    note = f"clips with a lower closed-loop error than {other}, {len(wins)} clips, {len(rows)} seeds"
    return [
        Figure(name, float(wins.mean()), "", 0.5, note),
        Figure(f"{name}_low", interval.low, "", None, "95% interval, episodes resampled"),
    ]


def _spent(run: Path) -> float:
    """CPU seconds of a training run."""
    config = json.loads((list_steps(run / "checkpoints")[-1] / "config.json").read_text())
    return float(config["info"]["cpu_seconds"])
