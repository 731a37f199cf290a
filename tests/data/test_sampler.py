from __future__ import annotations

import json

import numpy as np
import pytest

from embodied.data.loader import BatchLoader
from embodied.data.sampler import EpochSampler, MixtureSampler, WeightedSampler, permute, sequential_batches
from embodied.data.windows import WindowConfig, Windows
from embodied.schema import ACTION, IMAGE, STATE


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permutation_is_one(length: int) -> None:
    assert sorted(permute(np.arange(length), length, 7)) == list(range(length))


def test_permutation_looks_random() -> None:
    """Pairs of neighbours land in order about half the time, and the image is uncorrelated with the position."""
    order = permute(np.arange(100_000), 100_000, 3)
    assert abs((np.diff(order) > 0).mean() - 0.5) < 0.01
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert not np.array_equal(order, permute(np.arange(100_000), 100_000, 4))


def take(sampler, batches: int) -> list[int]:
    return [int(i) for _ in range(batches) for i in sampler.next_batch()]


def test_every_sample_once_an_epoch_over_ranks() -> None:
    """1003 samples, 3 ranks of 7: positions run on over the epochs' ends."""
    ranks = [EpochSampler(1003, 7, seed=5, rank=r, world_size=3) for r in range(3)]
    stream = [i for _ in range(100) for sampler in ranks for i in sampler.next_batch()]
    assert sorted(stream[:1003]) == list(range(1003))
    assert sorted(stream[1003:2006]) == list(range(1003))
    assert stream[:1003] != stream[1003:2006]
    assert ranks[0].epoch == pytest.approx(2100 / 1003)


def test_union_does_not_depend_on_the_number_of_ranks() -> None:
    one = take(EpochSampler(100, 12, seed=1), 30)
    four = [EpochSampler(100, 3, seed=1, rank=r, world_size=4) for r in range(4)]
    assert one == [i for _ in range(30) for sampler in four for i in sampler.next_batch()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpochSampler(50, 8, seed=2),
        lambda: MixtureSampler([30, 7], [0.5, 0.5], 8, seed=2),
        lambda: WeightedSampler(np.arange(20), 8, seed=2),
    ],
)
def test_resume_is_exact(make) -> None:
    straight = make()
    expected = take(straight, 40)
    first = make()
    head = take(first, 17)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    assert head + take(second, 23) == expected
    assert second.state_dict() == straight.state_dict()


def test_resume_on_other_ranks() -> None:
    one = MixtureSampler([30, 7], None, 8, seed=2)
    take(one, 5)
    pair = [MixtureSampler([30, 7], None, 4, seed=2, rank=r, world_size=2) for r in range(2)]
    for sampler in pair:
        sampler.load_state_dict(one.state_dict())
    assert take(one, 1) == take(pair[0], 1) + take(pair[1], 1)


def test_foreign_state_is_refused() -> None:
    state = EpochSampler(50, 8).state_dict()
    for other in (
        EpochSampler(51, 8),
        EpochSampler(50, 9),
        EpochSampler(50, 8, seed=1),
        WeightedSampler(np.ones(50), 8),
    ):
        with pytest.raises(ValueError, match="resume with the same"):
            other.load_state_dict(state)


def test_mixture_shares_and_member_epochs() -> None:
    sampler = MixtureSampler([1000, 10], [0.75, 0.25], 100, seed=0)
    stream = np.array(take(sampler, 400))
    small = stream[stream >= 1000] - 1000
    assert abs(len(small) / 40_000 - 0.25) < 0.01
    for epoch in range(5):
        assert sorted(small[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    large = stream[stream < 1000]
    assert sorted(large[:1000]) == list(range(1000))


def test_weighted_frequencies() -> None:
    counts = np.bincount(take(WeightedSampler(np.array([0.0, 1.0, 3.0]), 100), 400), minlength=3)
    assert counts[0] == 0
    assert abs(counts[2] / counts.sum() - 0.75) < 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpochSampler(0, 4),
        lambda: EpochSampler(4, 0),
        lambda: EpochSampler(4, 4, rank=2, world_size=2),
        lambda: MixtureSampler([3, 4], [1.0], 4),
        lambda: MixtureSampler([3, 4], [0.0, 0.0], 4),
        lambda: WeightedSampler(np.array([1.0, np.nan]), 4),
    ],
)
def test_bad_settings(make) -> None:
    with pytest.raises(ValueError, match=r"should|needs"):
        make()


def test_sequential_pass() -> None:
    parts = [np.concatenate([*sequential_batches(23, 4, rank, 3)]) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(23))


@pytest.mark.parametrize("ahead", [0, 3])
def test_loader_resumes_after_what_it_handed_out(make_cache, ahead: int) -> None:
    windows = Windows(make_cache([3, 5, 9]), WindowConfig(observations=[IMAGE, STATE], actions=[ACTION]))
    with BatchLoader(windows, EpochSampler(17, 4), ahead=0) as loader:
        expected = [loader.next()["index"].tolist() for _ in range(12)]
    with BatchLoader(windows, EpochSampler(17, 4), ahead) as loader:
        head = [loader.next()["index"].tolist() for _ in range(5)]
        state = loader.state_dict()
    with BatchLoader(windows, EpochSampler(17, 4), ahead) as loader:
        loader.load_state_dict(state)
        assert head + [loader.next()["index"].tolist() for _ in range(7)] == expected


def test_loader_raises_what_happened_in_the_thread(make_cache) -> None:
    windows = Windows(make_cache([3, 5]), WindowConfig(observations=[STATE]))
    with BatchLoader(windows, EpochSampler(99, 4, seed=1)) as loader, pytest.raises(IndexError, match=r"\[0, 8\)"):
        [loader.next() for _ in range(5)]
