from __future__ import annotations

import pickle

import numpy as np
import pytest

import embodied.data.windows as windows_module
from embodied.data.cache import FrameCache
from embodied.data.goals import FutureGoal, Paraphrase
from embodied.data.rows import RowReader
from embodied.data.source import ColumnSpec
from embodied.data.windows import Mixture, WindowConfig, Windows, split_episodes
from embodied.schema import ACTION, IMAGE, STATE, TASK
from embodied.training import features

KEYS = {"observations": [IMAGE, STATE], "actions": [ACTION]}


def test_chunk_pad_and_steps_to_go(make_cache) -> None:
    windows = Windows(make_cache([3, 5], ["lift", "push"]), WindowConfig(**KEYS, chunk=3))
    batch = windows.get_batch(np.array([7, 0, 2, 5]))
    assert batch[ACTION][..., 0].tolist() == [[7.5] * 3, [0.5, 1.5, 2.5], [2.5] * 3, [5.5, 6.5, 7.5]]
    assert batch["action_is_pad"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert batch["steps_to_go"].tolist() == [0, 2, 0, 2]
    assert batch[TASK] == ["push", "lift", "lift", "push"]
    assert batch["task_id"].tolist() == [1, 0, 0, 1]
    assert batch["frame_index"].tolist() == [4, 0, 2, 2]
    assert batch["episode_index"].tolist() == [1, 0, 0, 1]
    assert batch["success"].tolist() == [0, 1, 1, 0]
    assert batch["weight"].tolist() == [1, 1, 1, 1]
    assert batch[IMAGE].shape == (4, 8, 8, 3)
    assert batch[IMAGE][:, 3, 3, 1].tolist() == [7, 0, 2, 5]


def test_a_chunk_skips_frames_in_which_the_demonstrator_waits(make_cache, monkeypatch) -> None:
    """Frames 1, 2 of the first episode and 5 of the second are waits; observations stay where they are."""
    monkeypatch.setattr(windows_module, "still_frames", lambda _: np.array([0, 1, 1, 0, 0, 1, 0, 0], bool))
    windows = Windows(make_cache([4, 4]), WindowConfig(**KEYS, chunk=3, skip_still=True))
    batch = windows.get_batch(np.array([0, 1, 3, 4, 5, 6]))
    actions = [[0.5, 3.5, 3.5], [3.5] * 3, [3.5] * 3, [4.5, 6.5, 7.5], [6.5, 7.5, 7.5], [6.5, 7.5, 7.5]]
    assert batch[ACTION][..., 0].tolist() == actions
    assert batch["action_is_pad"].tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert batch[STATE][..., 0].tolist() == [0, 1, 3, 4, 5, 6]
    assert batch["steps_to_go"].tolist() == [3, 2, 0, 3, 2, 1]


def test_history_with_stride_stays_in_the_episode(make_cache) -> None:
    windows = Windows(make_cache([3, 5]), WindowConfig(**KEYS, history=3, stride=2, chunk=1))
    batch = windows.get_batch(np.array([7, 4, 3]))
    assert batch[STATE][..., 0].tolist() == [[3, 5, 7], [3, 3, 4], [3, 3, 3]]
    assert batch[f"{STATE}_is_pad"].tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert batch[IMAGE].shape == (3, 3, 8, 8, 3)
    assert batch[ACTION].shape == (3, 1)


def test_offsets_of_one_key_reach_into_the_future(make_cache) -> None:
    config = WindowConfig(observations=[STATE], actions=[], offsets={IMAGE: [-1, 0, 2]})
    batch = Windows(make_cache([3, 5]), config).get_batch(np.array([3, 6]))
    assert batch[IMAGE][:, :, 0, 0, 0].tolist() == [[3, 3, 5], [5, 6, 7]]
    assert batch[f"{IMAGE}_is_pad"].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_samples_are_the_frames_with_pictures_of_their_own(make_cache) -> None:
    cache = make_cache([5, 3], ["lift", "push"], every=3)
    windows = Windows(cache, WindowConfig(**KEYS, chunk=2), weights=np.array([1.0, 2.0]))
    assert len(windows) == 3  # frames 0 and 3 of the first episode, 0 of the second
    batch = windows.get_batch(np.arange(3))
    assert batch["frame_index"].tolist() == [0, 3, 0]
    assert batch["index"].tolist() == batch[IMAGE][:, 0, 0, 0].tolist() == [0, 3, 5]
    assert batch[ACTION][..., 0].tolist() == [[0.5, 1.5], [3.5, 4.5], [5.5, 6.5]]
    assert batch["steps_to_go"].tolist() == [4, 1, 2]
    assert batch["weight"].tolist() == [1, 1, 2]
    assert windows.samples_at(0, np.array([3, 0])).tolist() == [1, 0]
    assert windows.samples_at(1, np.array([0])).tolist() == [2]
    with pytest.raises(ValueError, match="pictures every 3 frames"):
        windows.samples_at(0, np.array([1]))
    assert len(Windows(cache, WindowConfig(observations=[STATE], actions=[ACTION]))) == 8  # who needs no pictures
    with pytest.raises(
        ValueError, match=r"every 3th step: offsets of '.*image' should be multiples of 3, got \[-1, 0\]"
    ):
        Windows(cache, WindowConfig(**KEYS, history=2))
    assert Windows(cache, WindowConfig(**KEYS, history=2, stride=3)).get_batch(np.array([1]))[IMAGE][
        0, :, 0, 0, 0
    ].tolist() == [0, 3]


def test_ages_that_do_not_run_evenly_are_refused(make_cache) -> None:
    cache = make_cache([4], every=2)
    np.array([1, 0, 1, 0], np.float32).tofile(cache.folder / "columns/image_age.bin")
    with pytest.raises(ValueError, match=r"frame 0 should have pictures of age 0, image_age says 1: render"):
        Windows(FrameCache(cache.folder), WindowConfig(**KEYS))


def test_features_of_repeated_pictures_are_computed_once(make_cache, monkeypatch) -> None:
    cache = make_cache([7, 4], every=3)
    seen: list[int] = []

    class Brightness:
        digest, columns, cameras = "x", {"bright": (1,)}, [IMAGE]

        def compute(self, images):
            seen.extend(images[IMAGE][:, 0, 0, 0].tolist())
            return {"bright": images[IMAGE][:, :1, 0, 0].astype(np.float16)}

    monkeypatch.setattr(features, "BATCH", 2)
    features.attach_features(cache, Brightness())
    assert cache.column("bright")[:, 0].tolist() == [0, 0, 0, 3, 3, 3, 6, 7, 7, 7, 10]
    assert seen == [0, 3, 6, 7, 10]
    assert len(Windows(cache, WindowConfig(observations=["bright"], actions=[]))) == 5


def test_some_episodes_and_weights(make_cache) -> None:
    windows = Windows(make_cache([3, 5, 2]), WindowConfig(**KEYS), episodes=[2, 0], weights=np.array([0.5, 2.0]))
    assert len(windows) == 5
    batch = windows.get_batch(np.arange(5))
    assert batch["index"].tolist() == [8, 9, 0, 1, 2]
    assert batch["weight"].tolist() == [0.5, 0.5, 2, 2, 2]
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        windows.get_batch(np.array([5]))
    with pytest.raises(ValueError, match="no episode was chosen"):
        Windows(windows.cache, WindowConfig(**KEYS), episodes=[])


def test_attached_features_are_read_like_any_column(make_cache) -> None:
    cache = make_cache([3, 5])
    with cache.add_column("feature", (2,), "float16") as writer:
        writer.write(0, np.arange(16).reshape(8, 2))
    config = WindowConfig(observations=["feature"], actions=[], history=2)
    assert Windows(cache, config).get_batch(np.array([4]))["feature"].tolist() == [[[6, 7], [8, 9]]]


def test_unknown_key_is_named(make_cache) -> None:
    with pytest.raises(ValueError, match=r"not 'observation\.sound'"):
        Windows(make_cache([3]), WindowConfig(observations=["observation.sound"]))


def test_large_rows_equal_the_memory_map(tmp_path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (50, 40, 40, 3), np.uint8)
    values.tofile(tmp_path / "a.bin")
    reader = RowReader(tmp_path / "a.bin", 50, ColumnSpec("uint8", (40, 40, 3)))
    frames = np.array([[3, 4, 5], [0, 49, 3]])
    assert np.array_equal(reader.take(frames), values[frames])
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).take(frames), values[frames])
    held = [reader.take(np.array([i, i + 1])) for i in range(20)]
    views = [reader.take(np.array([i, i + 1]))[1:, :2] for i in range(20)]  # only a slice is kept
    assert all(np.array_equal(batch, values[i : i + 2]) for i, batch in enumerate(held))
    assert all(np.array_equal(view, values[i + 1 : i + 2, :2]) for i, view in enumerate(views))


class TestGoals:
    def test_future_goal_is_later_in_the_same_episode(self, make_cache) -> None:
        windows = Windows(make_cache([3, 50]), WindowConfig(**KEYS), relabel=[FutureGoal(0.9, [STATE])])
        samples = np.repeat(np.arange(53), 40)
        batch = windows.get_batch(samples, np.random.default_rng(0))
        steps, left = batch["goal_steps"], batch["steps_to_go"]
        assert (steps <= left).all()
        assert (steps[left > 0] >= 1).all()
        assert np.array_equal(batch["goal_index"], batch["index"] + steps)
        assert np.array_equal(batch[f"goal.{STATE}"][:, 0], batch["goal_index"])

    def test_distribution(self) -> None:
        """gamma 0.5, 3 steps left: P(1, 2, 3) = (4, 2, 1) / 7."""
        steps = FutureGoal(0.5)._steps((np.arange(70_000) + 0.5) / 70_000, np.full(70_000, 3))
        assert np.bincount(steps).tolist() == [0, 40_000, 20_000, 10_000]
        steps = FutureGoal(1.0)._steps((np.arange(300) + 0.5) / 300, np.full(300, 3))
        assert np.bincount(steps).tolist() == [0, 100, 100, 100]

    def test_paraphrase(self, make_cache) -> None:
        relabel = Paraphrase({"lift": ["raise", "pick up"]})
        windows = Windows(make_cache([3, 5], ["lift", "push"]), WindowConfig(**KEYS), relabel=[relabel])
        batch = windows.get_batch(np.repeat([0, 4], 60), np.random.default_rng(0))
        assert set(batch[TASK][:60]) == {"lift", "raise", "pick up"}
        assert set(batch[TASK][60:]) == {"push"}


class TestMixture:
    def test_rows_keep_their_order(self, make_cache) -> None:
        first = Windows(make_cache([3, 5], ["lift", "push"], "a"), WindowConfig(**KEYS))
        second = Windows(make_cache([4], ["push"], "b"), WindowConfig(**KEYS))
        mixture = Mixture([first, second])
        batch = mixture.get_batch(np.array([8, 0, 11, 7]))
        assert mixture.lengths == [8, 4]
        assert batch["index"].tolist() == [0, 0, 3, 7]
        assert batch["dataset_index"].tolist() == [1, 0, 1, 0]
        assert batch[STATE][:, 0].tolist() == [0, 0, 3, 7]
        assert batch[TASK] == ["push", "lift", "push", "push"]
        assert [mixture.languages[i] for i in batch["task_id"]] == batch[TASK]

    def test_unlike_shapes_are_named(self, make_cache) -> None:
        members = [Windows(make_cache([3], name=f"s{size}", size=size), WindowConfig(**KEYS)) for size in (8, 9)]
        with pytest.raises(ValueError, match=r"'.*image' has shapes"):
            Mixture(members).get_batch(np.array([0, 4]))


def test_split_by_task(make_cache) -> None:
    cache = make_cache([2] * 11, ["a"] * 5 + ["b"] * 5 + ["c"])
    train, held = split_episodes(cache, 0.2)
    assert sorted([*train, *held]) == list(range(11))
    assert [cache.episodes.languages[i] for i in cache.episodes.task_id[held]] == ["a", "b"]
    assert np.array_equal(split_episodes(cache, 0.2)[1], held)
