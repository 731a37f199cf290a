"""Arms with several seeds: differences by hand, intervals against what chance alone gives, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import embodied.bench.ablation as bench_ablation
from embodied.bench.ablation import PolicyAblation
from embodied.cli.ablation import run as command
from embodied.evaluation.ablation import AblationConfig, ablation
from embodied.evaluation.records import Outcome, Record, RunFolder
from embodied.protocols import Episode


def evaluation(
    path: Path, outcomes: dict[int, list[bool | None]], suite: str = "points", perturbation: str = "none", **protocol
) -> str:
    """A run with outcomes by task; None is a simulator error."""
    folder = RunFolder(path)
    shared = {"env": {"suite": suite}, "max_steps": {"0": 40}, "simulator": {"mujoco": "1"}, "executed": 4}
    path.mkdir(parents=True, exist_ok=True)
    folder.write_protocol({**shared, **protocol})
    for task, row in outcomes.items():
        for trial, success in enumerate(row):
            kind = Outcome.ERROR if success is None else Outcome.SUCCESS if success else Outcome.FAILURE
            episode = Episode(suite, task, trial, trial, perturbation)
            folder.append(Record(episode, f"t{task}", f"go {task}", kind, 5, 40, "p", "d", 4), None)
    return str(path)


def test_differences_by_hand_tasks_weigh_the_same(tmp_path):
    a = [
        evaluation(tmp_path / "a0", {0: [True, True, False, False], 1: [True]}),
        evaluation(tmp_path / "a1", {0: [True, True, True, False], 1: [True]}),
    ]
    b = [evaluation(tmp_path / "b0", {0: [False] * 4, 1: [True]})]
    (found,) = ablation(AblationConfig({"b": b, "a": a}, samples=500))
    assert (found.arm, found.against, found.group) == ("a", "b", ("points", "none"))
    assert found.rate == pytest.approx((5 / 8 + 1) / 2)
    assert found.rate_against == pytest.approx((0 + 1) / 2)
    assert found.value == pytest.approx(5 / 16)
    assert (found.seeds, found.episodes) == ((2, 1), 5)
    assert found.interval.low < 5 / 16 < found.interval.high
    assert found.figure().name == "ablation.a_over_b.points"


def test_errors_and_episodes_that_a_run_lacks_are_left_out_for_all(tmp_path):
    a = [evaluation(tmp_path / "a", {0: [True, None, True]})]
    b = [evaluation(tmp_path / "b", {0: [False, False]})]
    (found,) = ablation(AblationConfig({"b": b, "a": a}, samples=10))
    assert found.episodes == 1
    assert found.value == 1.0


def test_a_seed_may_have_several_runs_and_groups_are_kept_apart(tmp_path):
    def seed(name: str, plain: bool, changed: bool) -> list[str]:
        return [
            evaluation(tmp_path / f"{name}p", {0: [plain] * 3}),
            evaluation(tmp_path / f"{name}c", {0: [changed] * 3}, perturbation="goal:other=2"),
        ]

    arms = {"without": [seed("x", True, False)], "with": [seed("y", True, True)]}
    found = {difference.figure().name: difference.value for difference in ablation(AblationConfig(arms, samples=10))}
    assert found == {
        "ablation.with_over_without.points": 0.0,
        "ablation.with_over_without.points.goal_other_2": 1.0,
    }


def test_the_interval_covers_both_sources_of_chance(tmp_path):
    """Two arms of one kind: seeds differ by chance as much as they do, and the interval has to hold zero."""
    rng = np.random.default_rng(0)
    covered, wider = 0, []
    for draw in range(12):
        arms = {}
        for arm in ("a", "b"):
            rates = np.clip(0.6 + 0.15 * rng.standard_normal(4), 0, 1)
            arms[arm] = [
                evaluation(tmp_path / f"{draw}{arm}{i}", {t: (rng.random(8) < rate).tolist() for t in range(3)})
                for i, rate in enumerate(rates)
            ]
        (found,) = ablation(AblationConfig(arms, samples=300))
        covered += found.interval.low <= 0 <= found.interval.high
        wider.append(found.interval.high - found.interval.low)
    assert covered >= 9
    assert 0.15 < np.mean(wider) < 0.6


def test_tasks_of_one_episode_are_resampled_among_each_other(tmp_path):
    """One seed an arm: all the chance there is lies in which tasks' episodes came out how."""
    a = evaluation(tmp_path / "a", {task: [task < 5] for task in range(10)})
    b = evaluation(tmp_path / "b", {task: [False] for task in range(10)})
    (found,) = ablation(AblationConfig({"b": [b], "a": [a]}, samples=2000))
    assert found.value == 0.5
    assert (found.interval.low, found.interval.high) == pytest.approx((0.2, 0.8), abs=0.01)  # binomial, n 10, p 1/2
    mixed = evaluation(tmp_path / "c", {0: [True, True], 1: [True], 2: [False]})
    none = evaluation(tmp_path / "d", {0: [False, False], 1: [False], 2: [False]})
    (found,) = ablation(AblationConfig({"d": [none], "c": [mixed]}, samples=500))
    assert (found.interval.low, found.interval.high) == pytest.approx((1 / 3, 1.0))  # task 0 is sure, 1 and 2 are not


def test_runs_of_other_worlds_and_single_arms_are_refused(tmp_path):
    a, b = evaluation(tmp_path / "a", {0: [True]}), evaluation(tmp_path / "b", {0: [True]}, max_steps={"0": 50})
    with pytest.raises(ValueError, match="max_steps"):
        ablation(AblationConfig({"a": [a], "b": [b]}))
    with pytest.raises(ValueError, match="two arms or more"):
        ablation(AblationConfig({"a": [a]}))
    other = evaluation(tmp_path / "c", {0: [True]}, suite="elsewhere")
    with pytest.raises(ValueError, match="share no episode"):
        ablation(AblationConfig({"a": [a], "c": [other]}))


def test_the_command_writes_figures(tmp_path, capsys):
    a, b = (evaluation(tmp_path / name, {0: [name == "a"] * 2}) for name in ("a", "b"))
    assert command([f"arms={{b: ['{b}'], a: [['{a}']]}}", f"out={tmp_path / 'figures.json'}", "samples=10"]) == 0
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["ablation.a_over_b.points"]["value"] == 1.0
    assert "ablation.a_over_b.points" in capsys.readouterr().out


class Commands:
    """Stands for the processes: training leaves a folder, evaluation the outcomes of its arm; some may fail."""

    def __init__(self, rates: dict[str, list[bool]]) -> None:
        self.rates, self.done, self.fail = rates, [], ""

    def __call__(self, arguments: list[str], log: Path) -> int:
        run = Path(next(word.removeprefix("run=") for word in arguments if word.startswith("run=")))
        self.done.append(arguments)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("the reason")
        if self.fail and self.fail in run.as_posix():
            return 3
        if arguments[0] == "train":
            step = run / "checkpoints" / "step-1"
            step.mkdir(parents=True, exist_ok=True)
            (step / "config.json").write_text("{}")
        else:
            evaluation(run, {0: self.rates[run.parent.name.rpartition("_")[0]]})
        return 0


def policy_ablation(folder: Path, **settings) -> PolicyAblation:
    arms = {"plain": [["policy=a"]], "full": [["policy=b", "stage=one"], ["policy=b", "stage=two"]]}
    return PolicyAblation(arms, {"points": ["env=points"]}, str(folder), seeds=[0, 1], **settings)


def test_bench_trains_every_arm_and_seed_and_compares_them(tmp_path, monkeypatch):
    commands = Commands({"plain": [True, False], "full": [True, True]})
    monkeypatch.setattr(bench_ablation, "run_logged", commands)
    bench = policy_ablation(tmp_path, train=["data=x"], evaluate=["workers=1"], jobs=2)
    found = {figure.name: figure.value for figure in bench.run(lambda line: None)}
    assert found == {
        "ablation.full.points": 1.0,
        "ablation.plain.points": 0.5,
        "ablation.full_over_plain.points": 0.5,
    }
    first = f"run={tmp_path}/plain_0/stage0"
    assert commands.done[0] == ["train", "policy=a", "data=x", "seed=0", first, "stop_after=1"]
    second = ["train", "policy=b", "stage=two", "data=x", f"stage.init={tmp_path}/full_1/stage0", "seed=1"]
    assert [*second, f"run={tmp_path}/full_1/stage1"] in commands.done
    tried = ["evaluate", "policy=checkpoint", f"policy.path={tmp_path}/full_1/stage1", "env=points", "workers=1"]
    assert [*tried, f"run={tmp_path}/full_1/points"] in commands.done
    assert len(commands.done) == 2 + 2 * (1 + 2) + 4  # prepared, trained, evaluated


def test_bench_goes_on_where_it_failed(tmp_path, monkeypatch):
    commands = Commands({"plain": [True], "full": [True]})
    monkeypatch.setattr(bench_ablation, "run_logged", commands)
    commands.fail = "full_1/stage1"
    with pytest.raises(RuntimeError, match=r"embodied train for .*full_1/stage1 ended with status 3.*\n.*the reason"):
        policy_ablation(tmp_path).run(lambda line: None)
    commands.fail, commands.done = "", []
    policy_ablation(tmp_path).run(lambda line: None)
    assert [words[0] for words in commands.done] == ["train", "evaluate"]


def test_bench_runs_a_real_command_and_keeps_what_it_says(tmp_path):
    assert bench_ablation.run_logged(["train", "policy=nothing"], tmp_path / "a" / "log") != 0
    assert "nothing" in (tmp_path / "a" / "log").read_text()


def test_bench_refuses_half_an_ablation(tmp_path):
    with pytest.raises(ValueError, match="two arms or more"):
        PolicyAblation({"one": [["policy=a"]]}, {"points": []}, str(tmp_path))
