"""Recorded episodes imagined again, with a world model that knows the point mass, and one that knows nothing."""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
import point_mass
import pytest

from embodied.evaluation.evaluate import evaluate
from embodied.evaluation.imagined_rollouts import imagine_episodes, section, side_by_side
from embodied.evaluation.records import RunFolder
from embodied.schema import IMAGE, STATE


class Frozen:
    """Shows the first frame for ever."""

    name, keys, chunk, skip = "frozen", [IMAGE], 2, 2

    def imagine(self, history, actions, seed):
        assert history[IMAGE].shape == (1, 1, 128, 128, 3)
        assert history[STATE].shape == (1, 1, 8)
        return {IMAGE: history[IMAGE].repeat(actions.shape[1] // self.skip, axis=1)}


class Knowing(Frozen):
    """Moves the point as the simulator does."""

    name = "knowing"

    def imagine(self, history, actions, seed):
        place = history[STATE][:, :1, :3] + 0.05 * np.cumsum(actions[..., :3], axis=1)[:, self.skip - 1 :: self.skip]
        shade = np.clip(128 + 120 * place, 0, 255).astype(np.uint8)
        return {IMAGE: np.broadcast_to(shade[:, :, None, None], (*shade.shape[:2], 128, 128, 3))}


@pytest.fixture
def summary(pool, settings):
    return evaluate(replace(settings, episodes=2), point_mass.Seeing(), pool=pool)


def imagined(world, summary, settings, pool):
    return imagine_episodes(RunFolder(summary.folder), settings.env, summary.records, world, 4, pool)


def test_a_model_that_knows_is_right_and_a_frozen_one_is_as_good_as_a_still_frame(summary, settings, pool):
    clips = imagined(Knowing(), summary, settings, pool)
    assert len(clips) == 4
    assert all(clip.psnr > 45 for clip in clips)
    assert all(clip.psnr > clip.still + 10 for clip in clips)
    frozen = imagined(Frozen(), summary, settings, pool)
    assert [clip.psnr for clip in frozen] == pytest.approx([clip.still for clip in clips])


def test_videos_last_as_many_whole_interactions_as_the_episode(summary, settings, pool):
    clip = imagined(Knowing(), summary, settings, pool)[0]
    with av.open(str(clip.path)) as video:
        assert float(video.streams.video[0].average_rate) == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == clip.record.steps // 4 * 2
    assert frames[0].shape == (256, 128, 3)
    apart = np.abs(frames[-1][:128].astype(int) - frames[-1][128:])
    assert apart.max() < 12


def test_smaller_images_are_enlarged_and_the_simulators_lie_above():
    truth = {"a": np.full((1, 4, 4, 3), 7, np.uint8), "b": np.full((1, 4, 4, 3), 8, np.uint8)}
    small = {"a": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), "b": np.full((1, 2, 2, 3), 9, np.uint8)}
    joined = side_by_side(truth, small)
    assert joined.shape == (1, 8, 8, 3)
    assert (joined[0, :4, :4] == 7).all()
    assert (joined[0, :4, 4:] == 8).all()
    assert (joined[0, 4:6, :2] == small["a"][0, 0, 0]).all()
    assert (joined[0, 4:, 4:] == 9).all()


def test_the_section_says_both_figures_and_escapes_words(summary, settings, pool):
    clips = imagined(Knowing(), summary, settings, pool)
    shown = section([replace(clips[0], record=replace(clips[0].record, language="<b>"))], "knowing")
    assert f"PSNR {clips[0].psnr:.1f} dB; the first frame, held still, {clips[0].still:.1f} dB" in shown.html
    assert "&lt;b&gt;" in shown.html
    assert shown.data["clips"][0]["key"] == clips[0].record.key
