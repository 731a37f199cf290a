"""Which episode comes next."""

from __future__ import annotations

from embodied.evaluation.schedule import Schedule
from embodied.protocols import Episode


def test_workers_stay_with_their_task_then_spread_out_then_help():
    schedule = Schedule(Episode("s", task, trial) for task in range(3) for trial in range(3))
    assert len(schedule) == 9

    def take(here, elsewhere):
        job = schedule.take(here, elsewhere)
        return None if job is None else (job.episode.task, job.episode.seed)

    assert take(None, []) == (0, 0)
    assert take(None, [("s", 0)]) == (1, 0)  # where nobody is
    assert take(("s", 0), [("s", 1)]) == (0, 1)  # stays
    assert take(("s", 0), [("s", 1)]) == (0, 2)
    assert take(("s", 0), [("s", 1)]) == (2, 0)  # its own is done
    assert take(("s", 2), [("s", 1)]) == (2, 1)
    assert take(("s", 2), [("s", 1)]) == (2, 2)
    assert take(("s", 2), [("s", 1)]) == (1, 1)  # helps
    assert take(("s", 1), [("s", 1)]) == (1, 2)
    assert take(("s", 1), [("s", 1)]) is None


def test_a_job_put_back_comes_first():
    schedule = Schedule(Episode("s", 0, trial) for trial in range(3))
    job = schedule.take(None, [])
    schedule.put(job, first=True)
    assert schedule.take(("s", 0), []) is job
