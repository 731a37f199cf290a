"""The policy in a process of its own: answers, errors, a crash while it thinks and while it does not, a hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from loop_parts import until

from embodied.deploy.inference import ProcessInference, Request, Result, infer
from embodied.protocols import Episode
from embodied.registry import build

RANDOM = {"_target_": "policies.reference.random.RandomPolicy", "chunk": 4}
OBSERVATION = {"observation.state": np.zeros((1, 8), np.float32), "task": ["anything"]}
EPISODE = Episode("robot", 0, 3)


@pytest.fixture(scope="module")
def inference() -> Iterator[ProcessInference]:
    made = ProcessInference(RANDOM)
    yield made
    made.close()


def ask(inference: ProcessInference, number: int, reset: Episode | None = EPISODE) -> Result:
    inference.submit(Request(number, number, OBSERVATION, reset=reset))
    return answer(inference)


def answer(inference: ProcessInference) -> Result:
    results: list[Result] = []
    assert until(lambda: (got := inference.poll()) is not None and not results.append(got), 120)  # type: ignore[func-returns-value]
    return results[0]


def test_a_process_answers_as_the_policy_does(inference: ProcessInference) -> None:
    assert inference.spec.name == "random"
    expected, _, _ = infer(build(RANDOM), None, Request(0, 0, OBSERVATION, reset=EPISODE))
    result = ask(inference, 0)
    assert result.error is None
    assert result.chunk is not None
    assert result.chunk.tobytes() == expected.tobytes()
    assert inference.pids != [os.getpid()]
    inference.submit(Request(1, 1, OBSERVATION))
    with pytest.raises(ValueError, match="an inference is under way"):
        inference.submit(Request(2, 2, OBSERVATION))
    assert answer(inference).request.number == 1


def test_an_error_is_words(inference: ProcessInference) -> None:
    """A fresh process's policy was not reset."""
    fresh = ProcessInference(RANDOM)
    result = ask(fresh, 0, reset=None)
    assert result.chunk is None
    assert "should be reset before it acts" in str(result.error)
    fresh.close()


def test_a_killed_process_is_replaced(inference: ProcessInference) -> None:
    ask(inference, 10)
    (first,) = inference.pids
    os.kill(first, signal.SIGKILL)
    assert until(lambda: not alive(first))
    result = ask(inference, 11)
    if result.error is not None:  # the pool had not noticed yet
        assert "terminated abruptly" in result.error
        result = ask(inference, 12)
    assert result.chunk is not None
    assert inference.pids != [first]


def test_killed_while_it_thinks(inference: ProcessInference) -> None:
    """A stopped process is one that does not answer; killing it is an error in words, and the next one answers."""
    ask(inference, 20)
    (pid,) = inference.pids
    os.kill(pid, signal.SIGSTOP)
    inference.submit(Request(21, 21, OBSERVATION, reset=EPISODE))
    time.sleep(0.2)
    assert inference.poll() is None
    assert inference.busy
    os.kill(pid, signal.SIGKILL)
    result = answer(inference)
    assert result.request.number == 21
    assert "BrokenProcessPool" in str(result.error)
    assert ask(inference, 22).chunk is not None


def alive(pid: int) -> bool:
    try:
        return b") Z " not in open(f"/proc/{pid}/stat", "rb").read()  # noqa: PTH123
    except FileNotFoundError:
        return False
