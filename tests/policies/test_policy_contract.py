"""What every policy promises (embodied.protocols.Policy), tried on all. A new one joins by a line in `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from embodied import schema
from embodied.evaluation.records import Outcome, Record, RunFolder, Trajectory
from embodied.protocols import Episode, Policy, PolicySpec
from embodied.registry import build

EPISODES = [Episode("points", task, 7 + trial, trial) for task in range(2) for trial in range(2)]


@dataclass(frozen=True)
class Case:
    """`make(folder)` gives the policy's config. `tolerance`: what a batch's other rows may change in a row."""

    name: str
    make: Callable[[Path], dict]
    tolerance: float = 0.0


def recorded_run(folder: Path) -> dict:
    """A replay of a run of EPISODES with random actions of lengths 13, 14, 15, 16."""
    run = RunFolder(folder / "recorded")
    run.write_protocol({})
    for i, episode in enumerate(EPISODES):
        actions = np.random.default_rng(i).uniform(-1, 1, (13 + i, 7)).astype(np.float32)
        record = Record(episode, "t", "go", Outcome.SUCCESS, len(actions), 40, "p", "d", 4)
        run.append(record, Trajectory(actions, {"position": np.full(3, float(i))}))
    return {"_target_": "policies.reference.replay.ReplayPolicy", "source": str(run.path), "chunk": 5}


CASES = [
    Case("zero", lambda _: {"_target_": "policies.reference.zero.ZeroPolicy", "chunk": 4}),
    Case("random", lambda _: {"_target_": "policies.reference.random.RandomPolicy", "chunk": 6}),
    Case("random_held", lambda _: {"_target_": "policies.reference.random.RandomPolicy", "hold": 3, "scale": 0.2}),
    Case("replay", recorded_run),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def make(case, tmp_path) -> Callable[[], Policy]:
    config = case.make(tmp_path)
    return lambda: build(config)


def observe(spec: PolicySpec, slots: list[int], step: int = 0) -> dict:
    """Observations that depend on slot and step only."""
    batch: dict = {schema.TASK: [f"pick up object {slot}" for slot in slots]}
    generators = [np.random.default_rng([slot, step]) for slot in slots]
    batch[schema.STATE] = np.stack([g.normal(size=schema.STATE_DIM).astype(np.float32) for g in generators])
    for key in spec.image_keys:
        shape = (spec.image_size, spec.image_size, 3)
        batch[key] = np.stack([g.integers(0, 256, shape, dtype=np.uint8) for g in generators])
    return batch


def rollout(policy: Policy, slots: list[int], episodes: list[Episode], steps: int = 3) -> np.ndarray:
    policy.reset(slots, episodes)
    return np.stack([policy.act(observe(policy.spec, slots, step), slots) for step in range(steps)])


def test_spec_is_complete(make):
    spec = make().spec
    assert isinstance(make(), Policy)
    assert 1 <= spec.replan <= spec.chunk
    assert spec.action_dim == schema.ACTION_DIM
    assert set(spec.image_keys) <= set(schema.IMAGE_KEYS)
    assert len(spec.digest) == 64
    int(spec.digest, 16)
    assert make().spec == spec  # the digest is a function of weights and configuration


def test_actions_have_the_promised_shape_type_and_range(make):
    policy = make()
    actions = rollout(policy, [0, 1, 2], EPISODES[:3])
    assert actions.shape == (3, 3, policy.spec.chunk, policy.spec.action_dim)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1


def test_reset_starts_over_and_a_fresh_policy_does_the_same(make, case):
    policy = make()
    first = rollout(policy, [0, 1], EPISODES[:2])
    np.testing.assert_array_equal(rollout(policy, [0, 1], EPISODES[:2]), first)
    np.testing.assert_array_equal(rollout(make(), [0, 1], EPISODES[:2]), first)


def test_order_of_the_batch_does_not_matter(make, case):
    forward = rollout(make(), [0, 1, 2, 3], EPISODES)
    backward = rollout(make(), [3, 2, 1, 0], EPISODES[::-1])
    np.testing.assert_allclose(backward[:, ::-1], forward, atol=case.tolerance, rtol=0)


def test_company_in_the_batch_does_not_matter(make, case):
    together = rollout(make(), [0, 1, 2, 3], EPISODES)
    policy = make()
    policy.reset([0, 1, 2, 3], EPISODES)
    for slot in (2, 0, 3, 1):  # each by itself, in another order
        alone = np.stack([policy.act(observe(policy.spec, [slot], step), [slot])[0] for step in range(3)])
        np.testing.assert_allclose(alone, together[:, slot], atol=case.tolerance, rtol=0)


def test_a_slot_can_be_reset_while_others_run(make, case):
    policy, expected = make(), rollout(make(), [0, 1], EPISODES[:2])
    policy.reset([0, 1], EPISODES[:2])
    np.testing.assert_allclose(policy.act(observe(policy.spec, [0, 1]), [0, 1]), expected[0], atol=case.tolerance)
    policy.reset([0], EPISODES[:1])
    np.testing.assert_allclose(policy.act(observe(policy.spec, [0]), [0])[0], expected[0, 0], atol=case.tolerance)
    np.testing.assert_allclose(policy.act(observe(policy.spec, [1], 1), [1])[0], expected[1, 1], atol=case.tolerance)


def test_inputs_are_left_as_they_were(make):
    policy = make()
    policy.reset([0, 1], EPISODES[:2])
    batch, same = observe(policy.spec, [0, 1]), observe(policy.spec, [0, 1])
    policy.act(batch, [0, 1])
    assert batch.keys() == same.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], same[key])
