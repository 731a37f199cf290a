"""States and images are bit-identical to the stock environments', step by step, on every suite.

Random resets and stored init states both: they shift the clock by which stock observables sample. Tasks that draw an
opening angle at reset are among them (LIBERO's initializer list, which grows).
"""

from __future__ import annotations

import numpy as np
import pytest

from embodied import schema
from sim.make import make_env
from sim.stock import as_item, make_stock, start_stock

KEYS = (schema.STATE, schema.IMAGE, schema.WRIST_IMAGE)
LIBERO_CASES = [
    ("libero_spatial", 4, None),  # opens a drawer at reset
    ("libero_object", 2, 1),
    ("libero_goal", 7, 3),  # turns on the stove, whose light is drawn one control step late
    ("libero_10", 3, None),  # opens a drawer at reset
    ("libero_90", 38, 0),  # stove on from the start
]
CASES = [pytest.param(*case, marks=pytest.mark.libero) for case in LIBERO_CASES]
CASES += [("robosuite", 9, None)]


def _actions() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([np.tile([0, 0, 0, 0, 0, 0, -1.0], (2, 1)), rng.uniform(-1, 1, (3, 7))])


@pytest.mark.parametrize(("suite", "task", "init_state"), CASES)
def test_equal_to_stock_to_the_last_bit(suite: str, task: int, init_state: int | None) -> None:
    stock = make_stock(suite, task)
    expected = [as_item(start_stock(stock, suite, task, 7, init_state))]
    physics = [stock.sim.get_state().flatten()]
    for action in _actions():
        expected.append(as_item(stock.step(action)[0]))
        physics.append(stock.sim.get_state().flatten())
    stock.close()

    env = make_env(suite, task, settle_steps=0)
    env.reset(seed=7, options={"init_state": init_state})
    for step, action in enumerate([None, *_actions()]):
        if action is not None:
            env.run_steps(action[None])
        np.testing.assert_array_equal(env.sim.get_state().flatten(), physics[step], err_msg=f"physics, step {step}")
        seen = env.observe()
        for key in KEYS:
            np.testing.assert_array_equal(seen[key], expected[step][key], err_msg=f"{key}, step {step}")
    env.close()


def test_the_sample_clock_is_robosuites() -> None:
    """Against robosuite's own Observable over 500 control steps, with and without an extra forced sample."""
    from robosuite.utils.observables import Observable, sensor

    from sim.stepping import SampleClock

    for forced in (1, 2):
        calls: list[int] = []

        @sensor(modality="count")
        def count(cache: dict, calls: list[int] = calls) -> float:
            calls.append(1)
            return 0.0

        observable = Observable(name="count", sensor=count, sampling_rate=20)
        clock = SampleClock(0.002, 20)
        for _ in range(forced):
            observable.update(0.002, {}, force=True)
        for _ in range(forced - 1):
            clock.force()
        for substep in range(500 * 25):
            calls.clear()
            observable.update(0.002, {})
            assert clock.tick() == bool(calls), f"substep {substep} after {forced} forced samples"
