"""What the check command reads and sums up."""

from __future__ import annotations

from sim.expert.check import numbers, table, times


def record(suite: str, planning: float, stepping: float) -> dict:
    return {
        "suite": suite,
        "task": 0,
        "init": 0,
        "success": True,
        "first": 80,
        "steps": 90,
        "planning_s": planning,
        "stepping_s": stepping,
    }


def test_ranges_of_numbers() -> None:
    assert numbers("0,2,5-7") == [0, 2, 5, 6, 7]


def test_planning_is_averaged_by_suite_and_compared_with_stepping() -> None:
    figures = times([record("a", 1.0, 2.0), record("a", 2.0, 4.0), record("b", 0.5, 0.25)])
    assert [(f.name, f.value, f.baseline) for f in figures] == [("planning.a", 1.5, 3.0), ("planning.b", 0.5, 0.25)]
    assert "planning over stepping 0.50; 2 episodes" in figures[0].note


def test_the_table_counts_and_divides() -> None:
    failed = record("a", 1.0, 1.0) | {"success": False, "first": None}
    last = table([record("a", 1.0, 3.0), failed]).splitlines()[-1].split()
    assert last == ["all", "1", "2", "80", "90", "0.50"]
