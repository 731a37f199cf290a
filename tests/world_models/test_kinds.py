"""The SVD-sized model tiny and random, proprioception, the success classifier, the world model as an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from world_parts import tiny_batch, tiny_nano

from embodied.chunk_policy import to_tensors
from embodied.protocols import SimEnv, Task
from embodied.schema import ACTION, IMAGE, IMAGE_KEYS, STATE, TASK, WRIST_IMAGE
from embodied.transforms import Pipeline
from world_models.persist.imagination import Imagination
from world_models.persist.imagined_env import ImaginedEnv
from world_models.persist.judging import Judge
from world_models.persist.proprioception import Proprioception
from world_models.persist.success import SuccessClassifier
from world_models.persist.svd import PersistSVD

UNET = {
    "in_channels": 8, "out_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96, "cross_attention_dim": 16,
    "num_attention_heads": 2,
}  # fmt: skip
VAE = {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1,
       "latent_channels": 4, "sample_size": 16}  # fmt: skip
LIMITS = {STATE: {"q01": [-1.0] * 8, "q99": [1.0] * 8}}


def test_svd_sized_model_trains_tiny_and_random() -> None:
    torch.manual_seed(0)
    settings = {"cameras": list(IMAGE_KEYS), "size": [16, 24], "weights": None,
                "architecture": {"unet": UNET, "vae": VAE}}  # fmt: skip
    model = PersistSVD(
        svd=settings, world={"residual": False, "actions": "observed"}, memory={"history": [0, -1], "chunk": 2},
        edm={"steps": 2},
    )  # fmt: skip
    model.set_stage("base")
    batch = tiny_batch(model)
    batch |= {key: batch[key].repeat(1, 1, 1, 2, 1)[:, :, :, :24] for key in IMAGE_KEYS}
    assert model.read(batch)[0].shape == (3, 5, 4, 16, 12)
    loss, _ = model.training_step(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in model.space.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())
    again = PersistSVD(**model.config())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.space.encode(batch), model.space.encode(batch))


def test_what_is_dropped_in_training_is_what_guidance_asks_for() -> None:
    """Guidance leaves action and current frame out at once; without it that case is not drawn, nor in validation."""
    shares = {}
    for guidance in ([1.0, 1.0], [1.0, 2.0]):
        model = tiny_nano(world={"action_width": 32, "condition_dropout": 0.2, "guidance": guidance})
        latents, actions, _ = model.read(tiny_batch(model, count=1))
        context = torch.randn_like(latents[:, : model.memory.context])
        many = [value.repeat(600, *[1] * (value.ndim - 1)) for value in (context, actions)]
        for training in (True, False):
            found = model.condition(*many, training=training)
            gone = [(value.flatten(1) == 0).all(1) for value in (found.tokens, found.current)]
            shares[guidance[1], training] = float((gone[0] & gone[1]).float().mean())
    assert shares[1.0, True] == pytest.approx(0.04, abs=0.02)
    assert shares[2.0, True] == pytest.approx(0.04 + 0.2 * 0.96, abs=0.05)
    assert shares[1.0, False] == shares[2.0, False] == 0


def test_held_out_loss_is_of_clean_histories() -> None:
    """The same weights and noise give the same loss, whatever noise training puts on the history."""
    losses = []
    for noise in (0.0, 2.0):
        model = tiny_nano(world={"action_width": 32, "history_noise": noise}).eval()
        torch.manual_seed(1)
        losses.append(float(model.training_step(tiny_batch(model))[0]))
    assert losses[0] == losses[1]


def test_the_licence_comes_before_the_weights() -> None:
    with pytest.raises(ValueError, match="Stability AI Community License"):
        PersistSVD()


def test_integrated_motion_by_hand() -> None:
    arm = Proprioception(keep=(0.5, 0.5), gain=(0.2, 0.2), speed=(0.01, 0.01), open=0.04)
    past = np.zeros((1, 1, 8))
    past[0, 0, 6:] = 0.015, -0.015
    actions = np.zeros((1, 2, 7))
    actions[0, :, 0], actions[0, :, 6] = 1.0, 1.0  # 5 cm asked for twice, closing
    states = arm.integrate(past, actions)
    assert states[0, :, 0] == pytest.approx([0.01, 0.025])  # 0.2 * 0.05, then 0.5 * 0.01 + 0.01 more
    assert states[0, :, 6] == pytest.approx([0.005, 0.0], abs=1e-6)
    assert states[0, :, 7] == pytest.approx([-0.005, 0.0], abs=1e-6)


def test_the_response_is_found_from_episodes() -> None:
    rng = np.random.default_rng(0)
    arm = Proprioception(keep=(0.7, 0.6), gain=(0.08, 0.05))
    episodes = []
    for _ in range(3):
        actions = rng.uniform(-1, 1, (1, 60, 7))
        past = np.zeros((1, 1, 8))
        states = np.concatenate([past, arm.integrate(past, actions)], axis=1)[0]
        episodes.append((states.astype(np.float64), np.concatenate([actions[0], actions[0, -1:]])))
    found = Proprioception.fit(episodes)
    assert found.keep == pytest.approx(arm.keep, abs=0.02)
    assert found.gain == pytest.approx(arm.gain, abs=0.005)


def test_labels_of_success_by_hand() -> None:
    model = SuccessClassifier(done=2, undone=5)
    batch = {"steps_to_go": torch.tensor([0, 1, 3, 5, 0]), "success": torch.tensor([1, -1, 1, 1, 0])}
    target, counts = model.labels(batch)
    assert target.tolist() == [1, 1, 0, 0, 0]
    assert counts.tolist() == [1, 1, 0, 1, 1]


class Still:
    """A simulator that only begins episodes."""

    task = Task("still", 0, "still", "stay", 100)
    closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.image = self.rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return {}, {}

    def observe(self, images: bool = True) -> dict[str, Any]:
        return {STATE: np.zeros(8, np.float32), TASK: "stay", IMAGE: self.image, WRIST_IMAGE: self.image}

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"init": np.zeros(1)}

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def imagination() -> Imagination:
    model = tiny_nano()
    model.space.fit(tiny_batch(model))
    return Imagination(model, Pipeline(model.transforms(), LIMITS), "tiny", "0" * 64)


def make(imagination: Imagination, probability: float = 0.0, patience: int = 3) -> ImaginedEnv:
    return ImaginedEnv(Still(), imagination, Judge(lambda images, words: probability, patience=patience), image_size=16)


def test_the_environment_has_the_simulators_interface(imagination: Imagination) -> None:
    env = make(imagination)
    assert isinstance(env, SimEnv)
    first, info = env.reset(seed=3)
    assert first[IMAGE].shape == (16, 16, 3)
    assert first[IMAGE].dtype == np.uint8
    observation, reward, terminated, truncated, _ = env.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    assert np.array_equal(observation[IMAGE], first[IMAGE])  # one step is no frame yet
    assert env.imagined == 0
    env.step(np.zeros(7, np.float32))
    assert env.imagined == 1


def test_same_seed_and_actions_same_episode(imagination: Imagination) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))
    seen = []
    for seed in (3, 3, 4):
        env = make(imagination)
        env.reset(seed=seed)
        env.run_steps(actions)
        seen.append(env.observe())
    assert np.array_equal(seen[0][IMAGE], seen[1][IMAGE])
    assert not np.array_equal(seen[0][IMAGE], seen[2][IMAGE])
    assert np.array_equal(seen[0][STATE], seen[2][STATE])  # both began at the same state


def test_success_needs_patience(imagination: Imagination) -> None:
    env = make(imagination, probability=0.9, patience=3)
    env.reset(seed=0)
    assert not env.run_steps(np.zeros((4, 7))).success
    assert env.run_steps(np.zeros((2, 7))).success


@pytest.mark.parametrize("pieces", [[12], [4, 4, 4], [3, 5, 1, 3], [10, 2]])
def test_frames_of_whole_chunks_are_those_of_imagine(imagination: Imagination, pieces: list[int]) -> None:
    """Whenever the policy looks, what it sees after whole chunks is what `imagine` predicts with the same noise."""
    actions = np.random.default_rng(1).uniform(-1, 1, (1, 12, 7)).astype(np.float32)
    env = make(imagination)
    env.reset(seed=5)
    for last in np.cumsum(pieces):
        env.run_steps(actions[0, env._steps : last])
    history = {key: env._start[key] for key in IMAGE_KEYS} | {STATE: np.zeros((1, 1, 8), np.float32)}
    frames = imagination.imagine(history, actions, seed=5)  # streams (5, 0): seed and task index
    assert frames[IMAGE].shape == (1, 6, 16, 16, 3)
    assert np.array_equal(frames[IMAGE][0, -1], env.observe()[IMAGE])


def test_each_frame_is_judged_once(imagination: Imagination) -> None:
    judged = []
    env = make(imagination)
    env.judge = Judge(lambda images, words: float(judged.append(images[IMAGE]) or 0))
    env.reset(seed=5)
    for count in (3, 5, 1, 3):
        env.run_steps(np.zeros((count, 7)))
        assert len(judged) == env.imagined == env._steps // 2


def test_imagine_wants_whole_chunks(imagination: Imagination) -> None:
    history = {key: np.zeros((1, 1, 16, 16, 3), np.uint8) for key in IMAGE_KEYS} | {STATE: np.zeros((1, 1, 8))}
    with pytest.raises(ValueError, match="a multiple of 4 actions, got 5"):
        imagination.imagine(history, np.zeros((1, 5, 7)), seed=0)


def test_history_is_read_at_the_memorys_places(imagination: Imagination) -> None:
    """The buffer holds the first frame, then the frames at -4, -2, 0 steps, then nothing imagined yet."""
    images = np.arange(9, dtype=np.uint8)[None, :, None, None, None] * np.ones((1, 9, 16, 16, 3), np.uint8)
    history = dict.fromkeys(IMAGE_KEYS, images)
    history |= {STATE: np.zeros((1, 9, 8), np.float32), ACTION: np.zeros((1, 8, 7), np.float32)}
    state = imagination.begin(history, np.zeros((1, 4, 7), np.float32))
    expected = imagination.world.space.encode(to_tensors({key: images[:, [0, 4, 6, 8]] for key in IMAGE_KEYS}))
    assert torch.equal(state.buffer, expected)
    assert state.actions.shape[1] == 4 + 2
