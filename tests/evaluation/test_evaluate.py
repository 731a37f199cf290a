"""Whole evaluations over real worker processes: counts, lazy rendering, errors, hangs, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import point_mass
import pytest
from point_mass import outcomes

from embodied.evaluation.config import Starts
from embodied.evaluation.evaluate import evaluate
from embodied.evaluation.records import Outcome, RunFolder, differences
from embodied.evaluation.runner import Batching
from embodied.workers import FailureKind, WorkerPool


def in_process(record) -> tuple[int, bool]:
    """The same episode, run here with a policy of its own."""
    env = point_mass.PointMassEnv(record.episode.suite, record.episode.task)
    env.reset(seed=record.episode.seed, options={"init_state": record.episode.init_state})
    policy, steps, success = point_mass.Seeing(), 0, False
    while not success and steps < 40:
        observation = {k: np.asarray(v)[None] if k != "task" else [v] for k, v in env.observe(True).items()}
        result = env.run_steps(policy.act(observation, [0])[0, :4][: 40 - steps])
        steps, success = steps + result.steps, result.success
    return steps, success


def test_every_episode_is_run_once_and_ends_as_it_does_alone(pool, settings):
    policy = point_mass.Seeing()
    summary = evaluate(settings, policy, pool=pool)
    records = RunFolder(Path(settings.run)).records()
    assert len(records) == len(summary.records) == 9
    assert sorted((r.episode.task, r.episode.init_state, r.episode.seed) for r in records.values()) == [
        (task, trial, 7 + trial) for task in range(3) for trial in range(3)
    ]
    for record in records.values():
        assert (record.steps, record.success) == in_process(record)
        assert len(RunFolder(summary.folder).trajectory(record.episode).actions) == record.steps
        assert record.attempts == 1
        assert record.versions["numpy"] == np.__version__
    assert policy.words == {f"move to goal {i}" for i in range(3)}
    assert summary.rate == np.mean([r.success for r in records.values()])
    assert json.loads((summary.folder / "summary.json").read_text())["all"]["success"] == summary.all.success


class Gathering(WorkerPool):
    """Answers only when no worker is busy any more, so that what waits at once does not depend on the machine."""

    def wait(self):
        replies = super().wait()
        while self.busy():
            replies = [*replies, *super().wait()]
        return replies


def test_batches_are_formed_of_what_waits_and_do_not_change_results(settings, tmp_path):
    together = point_mass.Seeing()
    with Gathering(2, timeout=20) as pool:
        evaluate(settings, together, pool=pool)
    single = point_mass.Seeing()
    evaluate(replace(settings, run=str(tmp_path / "one"), workers=1, batching=Batching.single), single)
    assert set(single.batches) == {1}
    assert max(together.batches) > 1
    assert sum(together.batches) == sum(single.batches)
    assert outcomes(Path(settings.run)) == outcomes(tmp_path / "one")


def test_replan_override_changes_how_often_the_policy_looks(pool, settings, tmp_path):
    often, seldom = point_mass.Seeing(), point_mass.Seeing()
    evaluate(replace(settings, tasks=[1], replan=1), often, pool=pool)
    evaluate(replace(settings, tasks=[1], replan=6, run=str(tmp_path / "b")), seldom, pool=pool)
    records = RunFolder(tmp_path / "b").records().values()
    assert sum(seldom.batches) == sum(-(-r.steps // 6) for r in records)
    assert sum(often.batches) == sum(r.steps for r in RunFolder(Path(settings.run)).records().values())
    with pytest.raises(ValueError, match="replan should be 1 to the policy's chunk of 6, got 7"):
        evaluate(replace(settings, replan=7, run=str(tmp_path / "c")), point_mass.Seeing(), pool=pool)


def test_the_limit_is_the_protocols_and_a_failure_is_no_error(pool, settings):
    summary = evaluate(replace(settings, max_steps=3, tasks=[2]), point_mass.Seeing(), pool=pool)
    assert [(r.outcome, r.steps, r.max_steps) for r in summary.records] == [(Outcome.FAILURE, 3, 3)] * 3


def test_instruction_reaches_the_policy_and_the_record(pool, settings):
    policy = point_mass.Seeing()
    summary = evaluate(replace(settings, tasks=[0], instruction="go to number 2"), policy, pool=pool)
    assert policy.words == {"go to number 2"}
    assert all(r.outcome is Outcome.FAILURE and r.language == "go to number 2" for r in summary.records)
    assert all(r.key.endswith("/go to number 2") for r in summary.records)


def test_words_that_the_environment_changes_reach_the_policy_and_the_record(pool, settings):
    """Language and goal perturbations are the environment's: the policy must not be told the task's own words."""
    policy = point_mass.Seeing()
    perturbations = ["none", "goal:other=1"]
    summary = evaluate(replace(settings, tasks=[0], perturbations=perturbations), policy, pool=pool)
    assert policy.words == {"move to goal 0", "move to goal 1"}
    assert [suite.languages for suite in summary.suites] == [["move to goal 1"], ["move to goal 0"]]
    assert summary.all.success == len(summary.records) > 0
    expert = {"runs_in": "simulator", "_target_": "point_mass.Pointing"}
    shown = evaluate(
        replace(settings, tasks=[0], policy=expert, perturbations=["goal:other=1"], run=f"{settings.run}-shown"),
        pool=pool,
    )
    assert {record.language for record in shown.records} == {"move to goal 1"}


def test_an_expert_runs_in_the_simulators_process(pool, settings):
    expert = {"runs_in": "simulator", "_target_": "point_mass.Pointing"}
    summary = evaluate(replace(settings, policy=expert), pool=pool)
    assert summary.all.success == 9
    assert summary.records[0].policy == "pointing"
    for record in summary.records:
        actions = RunFolder(summary.folder).trajectory(record.episode).actions
        env = point_mass.PointMassEnv("points", record.episode.task)
        env.reset(seed=record.episode.seed, options={"init_state": record.episode.init_state})
        assert env.run_steps(actions).success
        assert env.steps == record.steps == len(actions)


def test_an_expert_that_gives_up_has_failed(pool, settings):
    expert = {"runs_in": "simulator", "_target_": "point_mass.Pointing", "quits_after": 3}
    summary = evaluate(replace(settings, policy=expert, tasks=[1]), pool=pool)
    assert [(r.outcome, r.steps) for r in summary.records] == [(Outcome.FAILURE, 3)] * 3


def trouble(settings, tmp_path, **files: int):
    folder = tmp_path / "trouble"
    folder.mkdir()
    for name, times in files.items():
        (folder / name).write_text(str(times))
    return replace(settings, env={**settings.env, "trouble": str(folder)})


def test_crash_hang_and_exception_cost_an_attempt_and_never_count_as_failure(pool, settings, tmp_path):
    plain = evaluate(settings, point_mass.Seeing(), pool=pool)
    troubled = trouble(settings, tmp_path, CRASH_0_7=1, KILL_1_8=2, RAISE_0_8=1, HANG_2_7=1, RAISE_2_9=99)
    troubled = replace(troubled, run=str(tmp_path / "troubled"), call_timeout=1.5)
    summary = evaluate(troubled, point_mass.Seeing(), pool=pool)
    kinds = {(r.episode.task, r.episode.seed): [e.kind for e in r.errors] for r in summary.records if r.errors}
    assert kinds == {
        (0, 7): [FailureKind.CRASH.value],
        (0, 8): [FailureKind.EXCEPTION.value],
        (1, 8): [FailureKind.CRASH.value] * 2,
        (2, 7): [FailureKind.TIMEOUT.value],
        (2, 9): [FailureKind.EXCEPTION.value] * 3,
    }
    lost = next(r for r in summary.records if r.outcome is Outcome.ERROR)
    assert (lost.episode.task, lost.episode.seed, lost.attempts) == (2, 9, 3)
    assert lost.error == "RuntimeError: the simulation is unstable"
    assert "point_mass.py" in lost.errors[0].detail
    assert summary.all.error == 1
    assert summary.all.counted == 8
    expected = outcomes(plain.folder)
    del expected[lost.key]
    assert outcomes(summary.folder) == expected  # the retried ones end as if nothing had happened
    assert "1 " in summary.table().splitlines()[-1]


def test_errors_are_retried_on_request_only(pool, settings, tmp_path):
    troubled = trouble(settings, tmp_path, RAISE_1_7=2)
    troubled = replace(troubled, tasks=[1], max_attempts=2)
    assert evaluate(troubled, point_mass.Seeing(), pool=pool).all.error == 1
    assert evaluate(troubled, point_mass.Seeing(), pool=pool).all.error == 1
    again = evaluate(replace(troubled, retry_errors=True), point_mass.Seeing(), pool=pool)
    assert (again.all.error, again.all.counted) == (0, 3)


def test_a_simulator_that_never_works_ends_the_run(pool, settings):
    broken = replace(settings, env={**settings.env, "image_size": 16, "colour": "red"}, max_attempts=1)
    with pytest.raises(ValueError, match=r"5 episodes in a row.*unexpected keyword argument 'colour'"):
        evaluate(broken, point_mass.Seeing(), pool=pool)


def test_what_the_policy_raises_ends_the_run_and_nothing_is_counted(pool, settings):
    policy = point_mass.Seeing()
    policy.act = lambda observation, slots: np.full((len(slots), 6, 7), np.nan, np.float32)
    with pytest.raises(ValueError, match="policy seeing should return finite actions of shape"):
        evaluate(settings, policy, pool=pool)
    assert not RunFolder(Path(settings.run)).records()


def test_resuming_adds_episodes_and_refuses_other_settings(pool, settings):
    first = evaluate(replace(settings, tasks=[0], episodes=2), point_mass.Seeing(), pool=pool)
    before = outcomes(first.folder)
    more = point_mass.Seeing()
    summary = evaluate(settings, more, pool=pool)
    assert len(summary.records) == 9
    assert before.items() <= outcomes(first.folder).items()
    untouched = point_mass.Seeing()
    evaluate(settings, untouched, pool=pool)
    assert untouched.batches == []  # all were finished
    with pytest.raises(ValueError, match=r"other settings: policy.chunk: 6 -> 8; policy.digest"):
        evaluate(settings, point_mass.Seeing(chunk=8), pool=pool)
    with pytest.raises(ValueError, match=r"max_steps.0: 40 -> 30"):
        evaluate(replace(settings, max_steps=30), point_mass.Seeing(), pool=pool)
    assert [len(i["config"]["tasks"] or [0, 1, 2]) for i in RunFolder(first.folder).invocations()] == [1, 3, 3]


def test_starts_are_stored_where_there_are_any(pool, settings, tmp_path):
    seeded = replace(settings, env={**settings.env, "suite": "points_seeded"}, tasks=[0], run=str(tmp_path / "s"))
    assert {r.episode.init_state for r in evaluate(seeded, point_mass.Seeing(), pool=pool).records} == {None}
    drawn = replace(settings, starts=Starts.random, tasks=[0])
    assert {r.key for r in evaluate(drawn, point_mass.Seeing(), pool=pool).records} == {
        f"points/0/random/s{seed}/none" for seed in (7, 8, 9)
    }
    with pytest.raises(ValueError, match="task 0 has 5 stored initial states, first \\+ episodes asks for 6"):
        evaluate(replace(settings, tasks=[0], first=3, run=str(tmp_path / "t")), point_mass.Seeing(), pool=pool)
    with pytest.raises(ValueError, match=r"tasks of points should be among 0..2, got \[0, 3\]"):
        evaluate(replace(settings, tasks=[0, 3]), point_mass.Seeing(), pool=pool)


def test_differences_name_the_key():
    assert differences({"a": {"b": 1, "c": "x"}}, {"a": {"b": 3, "d": 4}}) == [
        "a.b: 1 -> 3",
        "a.c: 'x' -> nothing",
        "a.d: nothing -> 4",
    ]
    assert differences({"max_steps": {"0": 40, "1": 40}}, {"max_steps": {"0": 40, "2": 9}}) == []
