"""Worker processes: results, typed errors, restarts, and an end with the parent's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embodied.registry import registry
from embodied.workers import FailureKind, Ref, WorkerError, WorkerPool

PATIENT = {"_target_": "worker_objects.Patient"}


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    registry().target("worker_objects.Patient")
    with WorkerPool(2, timeout=20) as pool:
        yield pool
    registry().targets.discard("worker_objects.Patient")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_objects_live_on_between_calls_and_refer_to_each_other(pool):
    pool.build(0, "a", PATIENT, start=5)
    pool.build(0, "b", PATIENT, start=100)
    assert pool.call(0, "a", "add", 2) == 7
    assert pool.call(0, "a", "add", amount=1) == 8
    assert pool.call(0, "b", "add_of", Ref("a")) == 108
    np.testing.assert_array_equal(
        pool.call(0, "a", "image", 3), np.random.default_rng(3).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    )
    assert pool.call(0, "a", "settings") == ("1", True)
    assert pool.restarts == 0


def test_workers_run_at_the_same_time_and_answer_in_their_own_order(pool):
    for worker in range(2):
        pool.build(worker, "a", PATIENT)
    began = time.monotonic()
    pool.submit(0, "a", "sleep", 0.9)
    pool.submit(1, "a", "sleep", 0.6)
    assert pool.busy() == [0, 1]
    with pytest.raises(ValueError, match="worker 0 is busy"):
        pool.submit(0, "a", "add", 1)
    assert pool.wait(0.05) == []
    first, second = pool.wait(), pool.wait()
    assert [(r.worker, r.value()) for r in first + second] == [(1, 0.6), (0, 0.9)]
    assert time.monotonic() - began < 1.4  # 1.5 s one after the other
    assert pool.wait() == []


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ("fail", FailureKind.EXCEPTION, "KeyError: 'no such body'"),
        ("end_of_input", FailureKind.EXCEPTION, "EOFError"),
        ("segfault", FailureKind.CRASH, "SIGSEGV"),
        ("killed", FailureKind.CRASH, "SIGKILL"),
    ],
)
def test_a_worker_that_fails_is_replaced_and_its_neighbour_goes_on(pool, method, kind, words):
    pool.build(0, "a", PATIENT)
    pool.build(1, "a", PATIENT, start=10)
    old = pool.call(0, "a", "pid")
    with pytest.raises(WorkerError, match=words) as caught:
        pool.call(0, "a", method)
    assert (caught.value.worker, caught.value.kind) == (0, kind)
    if method != "killed":
        assert "worker_objects.py" in caught.value.detail  # a traceback, of the segfault too
    assert not alive(old)
    pool.build(0, "a", PATIENT)
    assert pool.call(0, "a", "pid") != old
    assert pool.call(1, "a", "add", 1) == 11
    assert pool.restarts == 1


def test_a_worker_that_hangs_is_killed_after_the_calls_own_time(pool):
    pool.build(0, "a", PATIENT)
    pid = pool.call(0, "a", "pid")
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"no answer in 0 s|no answer in 1 s") as caught:
        pool.call(0, "a", "hang", timeout=0.5)
    assert caught.value.kind is FailureKind.TIMEOUT
    assert "in hang" in caught.value.detail  # where it hung
    assert time.monotonic() - began < 5
    assert not alive(pid)


def test_a_worker_that_was_killed_while_idle_is_found_out_by_the_next_call(pool):
    pool.build(0, "a", PATIENT)
    os.kill(pool.pids()[0], signal.SIGKILL)
    with pytest.raises(WorkerError) as caught:
        pool.call(0, "a", "add", 1)
    assert caught.value.kind is FailureKind.CRASH


def test_after_a_restart_the_objects_are_gone_and_the_error_says_so(pool):
    pool.build(0, "a", PATIENT)
    pool.restart(0)
    with pytest.raises(WorkerError, match="build it first"):
        pool.call(0, "a", "add", 1)


def test_an_unregistered_target_is_refused_in_the_worker(pool):
    with pytest.raises(WorkerError, match=r"'os\.system'.*refused"):
        pool.build(0, "a", {"_target_": "os.system", "command": "true"})


def test_dropping_an_object_gives_its_memory_back(pool):
    pool.submit_build(0, "a", PATIENT, megabytes=200)
    full = pool.wait()[0].rss_mb
    pool.drop(0, "a")
    pool.submit_build(0, "b", PATIENT)
    assert pool.wait()[0].rss_mb < full - 190


def test_clearing_drops_all_objects_and_ends_calls_under_way(pool):
    for worker in range(2):
        pool.build(worker, "a", PATIENT)
    pids = pool.pids()
    pool.submit(1, "a", "hang")
    pool.clear()
    assert pool.busy() == []
    assert not alive(pids[1])
    with pytest.raises(WorkerError, match=r"owns \[\], not 'a'"):
        pool.call(0, "a", "pid")


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background passes on "ignore"
from embodied.registry import registry
from embodied.workers import WorkerPool
registry().target("worker_objects.Patient")
pool = WorkerPool(2)
for worker in range(2):
    pool.build(worker, "a", {"_target_": "worker_objects.Patient"})
pool.submit(0, "a", "hang")
print(*pool.pids().values(), flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_busy_and_idle_end_with_their_parent(how):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.send_signal(how)
        parent.wait(10)
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
