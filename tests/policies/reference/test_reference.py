"""The reference policies one by one."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.data.episode_record import EpisodeLine, EpisodeRecord, RecordFolder
from embodied.evaluation.records import Outcome, Record, RunFolder, Trajectory
from embodied.protocols import Episode
from policies.reference.random import RandomPolicy
from policies.reference.replay import ReplayPolicy
from policies.reference.zero import ZeroPolicy


def test_zero_holds_still_with_an_open_gripper():
    np.testing.assert_array_equal(ZeroPolicy(chunk=2).act({}, [4]), [[[0, 0, 0, 0, 0, 0, -1]] * 2])


def test_random_fills_its_range_and_holds():
    policy = RandomPolicy(chunk=1000, scale=0.3)
    policy.reset([0], [Episode("s", 0, 1)])
    drawn = policy.act({}, [0])[0]
    assert np.abs(drawn[:, :6]).max() == pytest.approx(0.3, abs=0.002)
    assert np.abs(drawn[:, 6]).max() == pytest.approx(1, abs=0.01)
    assert np.abs(drawn.mean(0)).max() < 0.1
    held = RandomPolicy(chunk=7, hold=3)
    held.reset([0], [Episode("s", 0, 1)])
    chunk = held.act({}, [0])[0]
    np.testing.assert_array_equal(chunk[[0, 0, 0, 3, 3, 3, 6]], chunk)
    assert len(np.unique(chunk, axis=0)) == 3


def test_random_differs_between_episodes_and_seeds():
    def first(episode, **settings):
        policy = RandomPolicy(**settings)
        policy.reset([0], [episode])
        return policy.act({}, [0])[0, 0, 0]

    values = [
        first(Episode("s", 0, 1)),
        first(Episode("s", 0, 2)),
        first(Episode("s", 1, 1)),
        first(Episode("s", 0, 1, perturbation="dark")),
        first(Episode("s", 0, 1), seed=1),
    ]
    assert len(set(values)) == 5
    assert RandomPolicy().spec.digest != RandomPolicy(seed=1).spec.digest
    with pytest.raises(ValueError, match=r"slot 3 should be reset before it acts"):
        RandomPolicy().act({}, [3])
    with pytest.raises(ValueError, match=r"scale should lie in \(0, 1\] and hold be at least 1, got 2 and 1"):
        RandomPolicy(scale=2)


def test_replay_of_a_run_gives_its_actions_then_holds_still(tmp_path):
    run, episode = RunFolder(tmp_path), Episode("points", 1, 8, 3)
    run.write_protocol({})
    actions = np.arange(35, dtype=np.float32).reshape(5, 7) / 35
    start = {"position": np.array([0.1, 0.2, 0.3])}
    run.append(Record(episode, "t", "go", Outcome.SUCCESS, 5, 40, "p", "d", 4), Trajectory(actions, start))
    run.append(Record(Episode("points", 1, 9, 4), "t", "go", Outcome.ERROR, 2, 40, "p", "d", 4), None)
    policy = ReplayPolicy(str(tmp_path), chunk=3)
    assert policy.episodes == [episode]
    np.testing.assert_array_equal(policy.snapshot(episode)["position"], start["position"])
    assert ReplayPolicy(str(tmp_path), from_snapshot=False).snapshot(episode) is None
    policy.reset([0], [episode])
    replayed = np.concatenate([policy.act({}, [0])[0] for _ in range(3)])
    np.testing.assert_array_equal(replayed[:5], actions)
    np.testing.assert_array_equal(replayed[5:, :6], 0)
    np.testing.assert_array_equal(replayed[5:, 6], actions[-1, 6])


def test_replay_of_demonstrations_runs_what_was_executed(tmp_path):
    rng = np.random.default_rng(0)
    executed, intended = rng.uniform(-1, 1, (2, 4, 7)).astype(np.float32)
    line = EpisodeLine("points", 2, 100, 0.1, "go", True, 4)
    states = np.zeros((5, 8), np.float32)
    RecordFolder(tmp_path).append(EpisodeRecord(line, {"init": np.ones(3)}, executed, intended, states, np.zeros(0)))
    policy = ReplayPolicy(str(tmp_path), chunk=4)
    episode = Episode("points", 2, 100)
    assert policy.episodes == [episode]
    policy.reset([0], [episode])
    np.testing.assert_array_equal(policy.act({}, [0])[0], executed)
    np.testing.assert_array_equal(policy.snapshot(episode)["init"], np.ones(3))
    with pytest.raises(ValueError, match="holds no demonstration of points/2/random/s101/none"):
        policy.reset([0], [Episode("points", 2, 101)])


def test_replay_needs_recordings(tmp_path):
    with pytest.raises(ValueError, match=r"give policy\.source="):
        ReplayPolicy(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"should hold demonstrations"):
        ReplayPolicy(str(tmp_path))
