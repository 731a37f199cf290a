"""EDM, memory, actions, codec and U-Net by hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied.schema import ACTION, STATE
from embodied.transforms import Pipeline, axis_angle_to_6d
from world_models.persist.actions import FRAME_ACTION, FrameActions, FramePoses
from world_models.persist.codec import CameraLatents, PatchCodec, to_images, to_pixels
from world_models.persist.edm import EDMConfig, coefficients, denoise, euler, loss_weight, noise_like, schedule
from world_models.persist.memory import FIRST, MemoryConfig
from world_models.persist.unet import make_unet


def test_coefficients_by_hand():
    c = coefficients(torch.tensor([2.0]))
    assert c.skip.item() == pytest.approx(1 / 5)
    assert c.out.item() == pytest.approx(-2 / 5**0.5)
    assert c.inside.item() == pytest.approx(1 / 5**0.5)
    assert c.noise.item() == pytest.approx(np.log(2) / 4)
    assert loss_weight(torch.tensor([2.0])).item() == pytest.approx(5 / 4)
    assert (loss_weight(torch.tensor([2.0])) * c.out**2).item() == pytest.approx(1)


def test_the_exact_denoiser_of_a_gaussian_needs_no_network():
    """For x ~ N(0, 1), E[x | x_s] = c_skip x_s: F = 0."""
    x, sigma = torch.randn(3, 2), torch.tensor([0.5, 1.0, 3.0])
    estimate = denoise(lambda scaled, level: torch.zeros_like(scaled), x, sigma)
    torch.testing.assert_close(estimate, x / (1 + sigma[:, None] ** 2))


def test_euler_lands_on_the_data_of_a_point():
    config = EDMConfig(sigma_max=10, sigma_min=0.01, steps=5)
    sigmas = schedule(config)
    assert sigmas.tolist()[0] == pytest.approx(10)
    assert sigmas.tolist()[-2:] == pytest.approx([0.01, 0])
    sample = euler(lambda x, sigma: torch.full_like(x, 0.7), torch.randn(4, 3), sigmas)
    torch.testing.assert_close(sample, torch.full((4, 3), 0.7))


def test_euler_of_a_gaussian_keeps_its_deviation():
    """The probability-flow ODE of N(0, 1) maps s_max * noise to noise s_max / sqrt(1 + s_max^2) in the limit."""
    config = EDMConfig(sigma_max=20, sigma_min=0.001, steps=400)
    noise = torch.randn(1, 1000)
    sample = euler(lambda x, s: x / (1 + s[:, None] ** 2), noise, schedule(config))
    torch.testing.assert_close(sample, noise * 20 / 401**0.5, rtol=0.02, atol=1e-3)


def test_noise_of_a_row_depends_on_its_seed_alone():
    both, one = noise_like((2, 3), [5, 9]), noise_like((2, 3), [9])
    assert torch.equal(both[1], one[0])
    assert not torch.equal(both[0], both[1])


def test_memory_positions_by_hand():
    memory = MemoryConfig(history=[0, -3, -1], chunk=2, skip=2)
    assert (memory.context, memory.frames, memory.lookback) == (4, 6, 3)
    assert memory.training_offsets() == [FIRST, -6, -2, 0, 2, 4]
    assert memory.buffer_offsets() == [FIRST, -6, -4, -2, 0]
    assert memory.positions(5) == [0, 1, 3, 4]  # at the start: -3, -1 and 0 lie at 1, 3 and 4
    assert memory.positions(7) == [0, 3, 5, 6]
    with pytest.raises(ValueError, match="at least 5 frames"):
        memory.positions(4)


def test_memory_of_training_and_rollout_agree():
    memory = MemoryConfig()
    buffer = memory.buffer_offsets()
    assert [buffer[i] for i in memory.positions(len(buffer))] == memory.training_offsets()[: memory.context]
    for skip in range(1, 11):  # as data rendered at every `skip`-th step asks
        assert all(offset % skip == 0 for offset in MemoryConfig(skip=skip).training_offsets())


STATISTICS = {STATE: {"q01": [0.0] * 6 + [0.0, -0.04], "q99": [1.0] * 6 + [0.04, 0.0]}}


def test_observed_poses_by_hand():
    state = np.array([[[0.5, 1.0, 0.25, np.pi, 0.0, 0.0, 0.03, -0.03]]], np.float32)
    value = Pipeline([FramePoses()], STATISTICS).forward({STATE: state})[FRAME_ACTION][0, 0]
    np.testing.assert_allclose(value[:3], [0, 1, -0.5], atol=1e-6)
    np.testing.assert_allclose(value[3:9], [1, 0, 0, 0, -1, 0], atol=1e-6)  # half a turn about x: columns x and -y
    assert value[9] == pytest.approx((0.06 - 0.04) / 0.04, abs=1e-5)


def test_rotation_does_not_jump_at_half_a_turn():
    angles = np.array([[np.pi - 0.01, 0, 0], [-(np.pi - 0.01), 0, 0]])
    state = np.concatenate([np.zeros((2, 3)), angles, np.zeros((2, 2))], axis=1)
    poses = Pipeline([FramePoses()], STATISTICS).forward({STATE: state})[FRAME_ACTION]
    assert np.abs(poses[0] - poses[1]).max() < 0.03


def test_commanded_poses_by_hand():
    state = np.array([[0.5, 0.5, 0.5, 0, 0, 0, 0, 0]])
    action = np.array([[1.0, 0, -1.0, 0, 0, np.pi, -1.0]])  # pi * 0.5 rad about z
    pipeline = Pipeline([FramePoses(kind="commanded")], STATISTICS)
    value = pipeline.forward({STATE: state, ACTION: action})[FRAME_ACTION][0]
    np.testing.assert_allclose(value, [0.1, 0, -0.1, 0, 1, 0, -1, 0, 0, -1], atol=1e-6)
    assert FramePoses(kind="commanded").offsets([0, 2], 2) == {STATE: [-1, 1], ACTION: [-1, 1]}


def test_commanded_equals_observed_of_the_next_frame_where_the_arm_obeys():
    """DROID's importer makes an action the motion to the next frame: then both forms agree."""
    state = np.array([[0.1, 0.2, 0.3, 3.0, 0.2, -0.1, 0, 0], [0.13, 0.2, 0.28, 3.0, 0.2, -0.1, 0, 0]])
    action = np.array([[0.6, 0, -0.4, 0, 0, 0, 1.0]])
    commanded = Pipeline([FramePoses(kind="commanded")], STATISTICS).forward({STATE: state[:1], ACTION: action})
    observed = Pipeline([FramePoses()], STATISTICS).forward({STATE: state[1:]})
    np.testing.assert_allclose(commanded[FRAME_ACTION][0, :9], observed[FRAME_ACTION][0, :9], atol=1e-5)
    np.testing.assert_allclose(observed[FRAME_ACTION][0, 3:9], axis_angle_to_6d(state[1, 3:6]), atol=1e-6)


def test_motions_keep_their_order():
    actions = np.arange(4 * 7, dtype=np.float32).reshape(1, 4, 7)
    value = FrameActions(skip=2).forward({ACTION: actions})[FRAME_ACTION]
    assert value.shape == (1, 2, 14)
    assert value[0, 1].tolist() == list(range(14, 28))
    assert FrameActions(skip=2).offsets([0, 2], 2) == {ACTION: [-2, -1, 0, 1]}


def test_patch_codec_is_exact_on_what_its_components_span():
    torch.manual_seed(0)
    basis = torch.randn(5, 3 * 16)
    patches = torch.randn(200, 5) @ basis + torch.randn(48)
    pixels = patches.view(200, 3, 4, 4)
    codec = PatchCodec(patch=4, channels=5, power=1.0)
    codec.fit(pixels)
    latents = codec.encode(pixels)
    assert latents.shape == (200, 5, 1, 1)
    torch.testing.assert_close(codec.decode(latents), pixels, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.square().mean((0, 2, 3)), torch.ones(5), atol=1e-3, rtol=0)


def test_cameras_are_stacked_along_the_height():
    torch.manual_seed(0)
    batch = {name: torch.randint(0, 256, (2, 3, 8, 12, 3), dtype=torch.uint8) for name in ("a", "b")}
    space = CameraLatents(PatchCodec(2, 12, 0.5), ["a", "b"], [8, 12])
    space.fit(batch)
    latents = space.encode(batch)
    assert latents.shape == (2, 3, *space.shape) == (2, 3, 12, 8, 6)
    decoded = space.decode(latents)
    assert torch.equal(decoded["a"], batch["a"])
    assert torch.equal(decoded["b"], batch["b"])


def test_pixels_are_averaged_over_areas():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[0, :2, :2] = 255
    images[0, 0, 0] = 0
    small = to_pixels(images, (2, 2))
    assert small[0, 0].tolist() == pytest.approx(np.array([[0.5, -1], [-1, -1]]))
    assert to_images(small)[0, 0, 0].tolist() == [191, 191, 191]


def tiny_unet():
    torch.manual_seed(0)
    sizes = {"channels": [32, 32], "attend": [True, True], "heads": 2}
    return make_unet(5, 4, 8, 3, sizes).eval()


def test_an_action_moves_its_own_frame_alone_through_spatial_cross_attention():
    unet = tiny_unet()
    for module in unet.modules():
        if type(module).__name__ == "AlphaBlender":
            module.switch_spatial_to_temporal_mix = False
            module.mix_factor.data.fill_(1e4)  # sigmoid 1: spatial only
    x, level, actions = torch.randn(1, 3, 5, 8, 8), torch.zeros(1), torch.randn(1, 3, 8)
    with torch.no_grad():
        before = unet(x, level, actions)
        moved = actions.clone()
        moved[:, 1] += 1
        change = (unet(x, level, moved) - before).abs().amax((0, 2, 3, 4))
    assert change[1] > 1e-4
    assert change[0] == change[2] == 0


def test_frames_meet_through_temporal_layers():
    unet = tiny_unet()
    x, level, actions = torch.randn(1, 3, 5, 8, 8), torch.zeros(1), torch.randn(1, 3, 8)
    with torch.no_grad():
        before = unet(x, level, actions)
        moved = actions.clone()
        moved[:, 1] += 1
        change = (unet(x, level, moved) - before).abs().amax((0, 2, 3, 4))
    assert (change > 0).all()


def test_the_unet_is_its_parent_when_all_frames_share_one_action():
    from diffusers import UNetSpatioTemporalConditionModel
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet = tiny_unet()
    x, level, action = torch.randn(2, 3, 5, 8, 8), torch.tensor([0.1, 0.4]), torch.randn(2, 1, 8)
    ids = torch.tensor([[6.0, 127.0, 0.02]]).expand(2, 3)
    with torch.no_grad():
        ours = unet(x, level, action.expand(-1, 3, -1))
        unet.set_attn_processor(AttnProcessor2_0())
        theirs = UNetSpatioTemporalConditionModel.forward(unet, x, level, action, ids).sample
    torch.testing.assert_close(ours, theirs)


def test_odd_sides_go_through():
    unet = tiny_unet()
    with torch.no_grad():
        assert unet(torch.randn(1, 3, 5, 9, 5), torch.zeros(1), torch.randn(1, 3, 8)).shape == (1, 3, 4, 9, 5)
