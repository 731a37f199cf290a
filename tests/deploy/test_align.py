"""Alignment: hold, asof and drop against a straightforward reading of their definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embodied.deploy.align import Aligner, Ring, Sample
from embodied.deploy.contract import Contract, contract_from

SECOND = 1_000_000_000


def contract(align: str = "hold", count: int = 1) -> Contract:
    streams = [
        {
            "feature": "observation.state",
            "topic": f"/s{i}",
            "type": "std_msgs/msg/Float64MultiArray",
            "names": [f"x{i}"],
            "align": align,
            "tolerance_s": 0.3,
        }
        for i in range(count)
    ]
    action = {"topic": "/a", "type": "std_msgs/msg/Float64MultiArray", "names": ["x"]}
    return contract_from({"name": "c", "rate_hz": 10, "streams": streams, "action": action})


def put(aligner: Aligner, stamp_s: float, value: float, index: int = 0, now_s: float = 100.0) -> bool:
    stamp = round(stamp_s * SECOND)
    return aligner.put(index, np.array([value], np.float32), stamp, stamp, round(now_s * SECOND))


def value_at(aligner: Aligner, at_s: float) -> float | None:
    got = aligner.sample(round(at_s * SECOND)).features.get("observation.state")
    return None if got is None else float(np.asarray(got)[0])


def test_hold_asof_drop() -> None:
    """One sample at 1.0 s, ticks of 0.1 s, tolerance 0.3 s."""
    expected = {"hold": [None, 1, 1, 1, 1], "asof": [None, 1, 1, 1, None], "drop": [None, 1, 1, None, None]}
    for align, values in expected.items():
        aligner = Aligner(contract(align))
        put(aligner, 1.0, 1.0)
        assert [value_at(aligner, t) for t in (0.99, 1.0, 1.09, 1.25, 9.0)] == values, align


def test_drop_uses_every_sample_once() -> None:
    aligner = Aligner(contract("drop"))
    for step in range(5):
        put(aligner, 1.0 + 0.2 * step, float(step))
    used = [value_at(aligner, 1.0 + 0.1 * tick) for tick in range(10)]
    assert [value for value in used if value is not None] == [0, 1, 2, 3, 4]


def test_missing_streams_are_named_and_parts_are_joined() -> None:
    aligner = Aligner(contract(count=3))
    put(aligner, 1.0, 5.0, index=2)
    put(aligner, 1.0, 3.0, index=0)
    assert aligner.sample(2 * SECOND).missing == ["/s1"]
    assert aligner.sample(2 * SECOND).measured is None
    put(aligner, 1.5, 4.0, index=1)
    got = aligner.sample(2 * SECOND)
    assert np.asarray(got.features["observation.state"]).tolist() == [3, 4, 5]
    assert got.measured is not None
    assert got.measured.tolist() == [3, 4, 5]
    assert got.stamps == [SECOND, 3 * SECOND // 2, SECOND]


def test_a_stamp_from_the_future_is_refused_and_counted() -> None:
    aligner = Aligner(contract())
    assert not put(aligner, 1.6, 1.0, now_s=1.0)
    assert put(aligner, 1.4, 2.0, now_s=1.0)
    assert (aligner.counts[0].received, aligner.counts[0].ahead) == (2, 1)
    assert value_at(aligner, 1.0) is None, "it belongs to a later tick"
    assert value_at(aligner, 1.5) == 2


@settings(max_examples=100, deadline=None)
@given(stamps=st.lists(st.integers(0, 50), max_size=40), capacity=st.integers(1, 8), at=st.integers(-1, 51))
def test_ring_is_the_newest_not_after(stamps: list[int], capacity: int, at: int) -> None:
    """Against a list that keeps the `capacity` greatest stamps seen so far, first of equals."""
    ring, plain = Ring(capacity), {}
    for order, stamp in enumerate(stamps):
        sample = Sample(stamp, order, "")
        kept = ring.put(sample)
        fits = stamp not in plain and (len(plain) < capacity or stamp > min(plain))
        assert kept == fits
        if fits:
            plain[stamp] = sample
            plain = dict(sorted(plain.items())[-capacity:])
    before = [stamp for stamp in plain if stamp <= at]
    assert ring.at(at) == (plain[max(before)] if before else None)
    assert len(ring) == len(plain) <= capacity
