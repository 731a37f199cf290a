"""Evaluation of world models: clips, scores, pairing and statistics by hand; the command on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.cli.evaluate_world import run as evaluate_world
from embodied.cli.train import run as train
from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.evaluation import world_lpips
from embodied.evaluation.world import Result, _last_known, load_world, read_results, score_frames
from embodied.evaluation.world_clips import Clip, ClipConfig, list_clips
from embodied.evaluation.world_metrics import FrameMetrics
from embodied.evaluation.world_statistics import bootstrap_mean_of, mmrv, pearson, ranks, spearman
from embodied.evaluation.world_summary import summarise
from embodied.training.bench import RandomSource


class Gap:
    name = "lpips"

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return build_cache(
        RandomSource(6, 30, 16), tmp_path_factory.mktemp("w") / "cache", CacheConfig(size=[16], image_statistics=False)
    )


def test_clips_are_those_held_out_and_fit(cache: FrameCache) -> None:
    config = ClipConfig(str(cache.folder), holdout=0.4, starts=2, least=2)
    clips = list_clips(cache, config, chunk_steps=4)
    assert {clip.start for clip in clips} == {0, 21}  # 29 - 2 * 4
    assert {clip.steps for clip in clips} == {29, 8}
    assert len({clip.episode for clip in clips}) == 2
    assert clips == list_clips(cache, config, chunk_steps=4)
    with pytest.raises(ValueError, match="no held-out episode of 9"):
        list_clips(cache, ClipConfig(str(cache.folder), holdout=0.4, least=9), chunk_steps=4)


def test_scores_by_interaction_leave_out_what_is_past_the_end() -> None:
    truth = torch.full((1, 4, 16, 16, 3), 100, dtype=torch.uint8)
    imagined = truth.clone()
    imagined[:, 1] += 51  # a fifth of the range: 13.98 dB
    imagined[:, 3] += 51
    start = {"a": truth[:, :1]}
    valid = np.array([[True, True, True, False]])
    row = score_frames(FrameMetrics(Gap()), {"a": imagined}, {"a": truth}, start, valid, 2)[0]["a"]
    assert row["psnr"] == pytest.approx([(60 - 20 * math.log10(0.2)) / 2, 60], abs=1e-3)
    assert row["lpips"] == pytest.approx([0.2, 0.0], abs=1e-5)
    assert all(math.isnan(value) for value in row["psnr_moving"])  # nothing moves


def test_only_what_moves_counts_in_the_masked_score() -> None:
    start = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)
    truth = start.expand(1, 2, 16, 16, 3).clone()
    truth[:, :, 0, 0] = 255
    wrong_elsewhere = truth.clone()
    wrong_elsewhere[:, :, 5:] = 255
    found = score_frames(
        FrameMetrics(Gap()), {"a": wrong_elsewhere}, {"a": truth}, {"a": start}, np.ones((1, 2), bool), 2
    )
    assert found[0]["a"]["psnr_moving"] == [60.0]
    assert found[0]["a"]["psnr"][0] < 5


def test_copy_last_is_the_frame_before_each_interaction() -> None:
    truth = torch.arange(1, 7).view(1, 6, 1, 1, 1)
    start = torch.zeros(1, 1, 1, 1, 1, dtype=truth.dtype)
    assert _last_known(truth, start, 2).flatten().tolist() == [0, 0, 2, 2, 4, 4]


def result(model: str, episode: int, psnr: float, lpips: float) -> Result:
    return Result(model, "closed", Clip(episode, 0, 8), {"a": {"psnr": [psnr, psnr], "lpips": [lpips, math.nan]}})


def test_paired_wins_by_hand(tmp_path: Path) -> None:
    """Episode 0 is won on both metrics, 1 on one of two (half), 2 on none."""
    rows = [result("base", i, 20.0, 0.3) for i in range(3)]
    rows += [result("post", 0, 21, 0.2), result("post", 1, 21, 0.4), result("post", 2, 19, 0.4)]
    summary = summarise(rows, "base", tmp_path)
    win = summary.wins[0]
    assert (win.model, win.clips, win.rate) == ("post", 3, 0.5)
    assert win.by_metric == pytest.approx({"psnr": 2 / 3, "lpips": 1 / 3})
    assert summary.means["base"]["closed"]["lpips"]["a"] == pytest.approx(0.3)
    names = {figure.name for figure in summary.figures()}
    assert names >= {"closed_loop.post.psnr.a", "win_rate", "win_rate_low", "win_rate.post_over_base"}


def test_every_pair_of_models_is_compared_and_the_last_over_the_first_is_the_win_rate(tmp_path: Path) -> None:
    rows = [result(name, i, psnr, 0.3) for name, psnr in (("copy_first", 18), ("base", 20), ("more", 21), ("post", 22))
            for i in range(2)]  # fmt: skip
    summary = summarise(rows, "base", tmp_path)
    pairs = [(win.model, win.against) for win in summary.wins]
    assert pairs == [
        ("base", "copy_first"), ("more", "copy_first"), ("more", "base"),
        ("post", "copy_first"), ("post", "base"), ("post", "more"),
    ]  # fmt: skip
    figures = {figure.name: figure for figure in summary.figures()}
    assert figures["win_rate"].note == "post against base, 2 clips"
    assert figures["win_rate"].value == figures["win_rate.post_over_base"].value == 1.0


def test_statistics_by_hand() -> None:
    assert ranks([0.3, 0.1, 0.3]).tolist() == [2.5, 1, 2.5]
    assert pearson([0, 1, 2], [1, 3, 5]) == pytest.approx(1)
    assert spearman([0, 1, 2], [0, 10, 5]) == pytest.approx(0.5)
    # Policies with real rates 0.1, 0.5, 0.9; the first two are swapped: each loses 0.4 to the other, the third nothing.
    assert mmrv([0.1, 0.5, 0.9], [0.6, 0.5, 0.9]) == pytest.approx((0.4 + 0.4) / 3)
    assert mmrv([0.1, 0.5, 0.9], [0.0, 0.2, 0.3]) == 0
    with pytest.raises(ValueError, match="at least two policies"):
        mmrv([0.1], [0.2])


def test_bootstrap_resamples_whole_groups() -> None:
    values, groups = np.array([1.0] * 50 + [0.0] * 50), np.array([0] * 50 + [1] * 50)
    interval = bootstrap_mean_of(values, groups)
    assert (interval.low, interval.high) == (0.0, 1.0)  # two groups say little, however many clips they hold
    many = bootstrap_mean_of(values, np.arange(100))
    assert 0.35 < many.low < 0.5 < many.high < 0.65


SIZES = [
    "world_model=persist_nano", "world_model.nano.size=[16,16]", "world_model.nano.latent=6", "stage=base",
    "world_model.nano.channels=[32,32]", "world_model.nano.attend=[false,true]", "world_model.nano.heads=2",
    "world_model.world.action_width=32", "world_model.world.action_key=action", "world_model.memory.history=[0,-1]",
    "world_model.memory.chunk=2", "world_model.edm.steps=2",
]  # fmt: skip


def test_the_command(cache: FrameCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_lpips, "perceptual", Gap)
    monkeypatch.setattr("embodied.evaluation.world_metrics.perceptual", Gap)
    data = ["data=libero_demos", f"data.sets.libero_demos.path={cache.folder}", "data.sets.libero_demos.source=null"]
    quiet = ["stage.steps=1", "stage.batch_size=2", "log.progress=false", "cpu=true", "data.holdout=0.4"]
    train([*SIZES, *data, *quiet, f"run={tmp_path / 'base'}"])
    clips = [f"clips.path={cache.folder}", "clips.holdout=0.4", "clips.interactions=3", "clips.least=2", "videos=1"]
    models = f"models={{base: '{tmp_path / 'base'}'}}"
    run, out = tmp_path / "eval", tmp_path / "figures.json"
    words = [models, *clips, f"run={run}", f"out={out}"]
    assert evaluate_world(words) == 0
    results = read_results(run)
    assert {(r.model, r.mode) for r in results} == {
        ("copy_first", "closed"), ("copy_last", "closed"), ("base", "closed"), ("base", "forced"),
    }  # fmt: skip
    assert len(results) == 4 * 4
    first, forced = ([r for r in results if r.model == "base" and r.mode == m] for m in ("closed", "forced"))
    for a, b in zip(first, forced, strict=True):  # the first interaction starts from the truth either way
        for camera, scores in a.scores.items():
            assert scores["psnr"][0] == pytest.approx(b.scores[camera]["psnr"][0], abs=1e-3)
    assert "<video" in (run / "report.html").read_text()
    figures = json.loads(out.read_text())
    assert "closed_loop.base.psnr.wrist" in figures
    assert "teacher_forced.base.lpips.external" in figures
    before = (run / "results.jsonl").read_bytes()
    (run / "results.jsonl").write_bytes(before[: len(before) // 2])  # as after a crash
    evaluate_world(words)
    assert sorted((run / "results.jsonl").read_bytes().splitlines()) == sorted(before.splitlines())
    for other, change in (("interactions", "clips.interactions=2"), ("steps", "steps=3")):
        with pytest.raises(ValueError, match=f"other {other}"):
            evaluate_world([*words, change])
    copied = tmp_path / "copied"
    shutil.copytree(cache.folder, copied)
    with pytest.raises(ValueError, match="other data"):
        evaluate_world([*words, f"clips.path={copied}"])
    with pytest.raises(ValueError, match="against should name"):
        evaluate_world([*words, "against=bse"])
    assert load_world(tmp_path / "base", "base", steps=3).sampling.steps == 3


def test_a_policy_is_no_world_model(tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "policies/bc/checkpoints/libero"
    with pytest.raises(ValueError, match="should hold a world model"):
        load_world(root, "x")
