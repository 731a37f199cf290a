"""Imagination and branching: determinism, independence of the batch, equality with independent rollouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from world_parts import tiny_batch, tiny_nano

from world_models.persist.rollout import RolloutState, Sampling, branch, imagine, seed_of


@pytest.fixture(scope="module")
def world() -> Any:
    model = tiny_nano().eval()
    model.space.fit(tiny_batch(model))
    return model


def start(world: Any, rows: int = 2, future: int = 8) -> RolloutState:
    known = world.memory.lookback + 2
    batch = tiny_batch(world, rows, known + future)
    return RolloutState(world.space.encode(batch)[:, :known], batch["frame_action"])


def test_same_seed_same_result_another_seed_another(world: Any) -> None:
    first, again, other = (imagine(world, start(world), 2, [(seed, 0), (seed, 1)]).buffer for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_one_rollout_does_not_depend_on_the_others(world: Any) -> None:
    both = imagine(world, start(world), 2, [(3, 0), (3, 1)]).buffer
    alone = imagine(world, start(world).rows(torch.tensor([1])), 2, [(3, 1)]).buffer
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_one_at_a_time_equals_at_once(world: Any) -> None:
    """Latents are fed back as they are: stopping in between changes nothing."""
    at_once = imagine(world, start(world), 3, [(3, 0), (3, 1)]).buffer
    state = start(world)
    for number in range(3):
        state = imagine(world, state, 1, [(3, 0), (3, 1)], first=number)
    assert torch.equal(at_once, state.buffer)


def test_branching_equals_independent_rollouts_with_the_same_noise(world: Any) -> None:
    state, lengths = start(world), torch.tensor([[1, 3, 2], [2, 1, 3]])
    found = branch(world, state, lengths, [(7, 0), (7, 1)], first=4)
    chunk, known = world.memory.chunk, state.buffer.shape[1]
    for b in range(2):
        for k in range(3):
            count = int(lengths[b, k])
            alone = imagine(world, state.rows(torch.tensor([b])), count, [(7, b, k)], first=4).buffer[:, known:]
            torch.testing.assert_close(found.frames[b, k, : count * chunk], alone[0], atol=1e-4, rtol=1e-4)
            assert (found.frames[b, k, count * chunk :] == 0).all()
    assert not torch.allclose(found.frames[0, 1, :chunk], found.frames[0, 2, :chunk])
    assert found.valid(chunk).sum().item() == int(lengths.sum()) * chunk


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_branching_on_a_gpu() -> None:
    world = tiny_nano().eval()
    state = start(world)
    state = RolloutState(state.buffer.cuda(), state.actions.cuda())
    found = branch(world.cuda(), state, torch.tensor([[1, 2], [2, 1]]), [(7, 0), (7, 1)])
    assert found.frames.is_cuda
    assert found.valid(world.memory.chunk).sum().item() == 6 * world.memory.chunk


def test_the_shared_condition_is_computed_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = world.action_encoder.forward
    monkeypatch.setattr(world.action_encoder, "forward", lambda a, c: rows.append(len(a)) or plain(a, c))
    branch(world, start(world), torch.ones(2, 5, dtype=torch.long), [(7, 0), (7, 1)])
    assert rows == [2]


def test_missing_actions_are_named(world: Any) -> None:
    with pytest.raises(ValueError, match="2 are missing"):
        imagine(world, start(world, future=4), 3, [(0, 0), (0, 1)])


def test_guidance_of_one_is_the_model_alone(world: Any) -> None:
    state = start(world)
    plain = imagine(world, state, 1, [(1, 0), (1, 1)], Sampling(guided=False)).buffer
    assert torch.equal(plain, imagine(world, state, 1, [(1, 0), (1, 1)]).buffer)
    world.world.guidance = [1.0, 2.0]
    guided = imagine(world, state, 1, [(1, 0), (1, 1)]).buffer
    world.world.guidance = [1.0, 1.0]
    assert not torch.allclose(guided, plain)


def test_seeds_differ_by_interaction_and_candidate() -> None:
    assert len({seed_of((0, b, k), i) for b in range(4) for k in range(4) for i in range(4)}) == 64
