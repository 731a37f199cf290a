"""Pairing two runs: counts by hand, refusals, notes, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embodied.cli import main
from embodied.evaluation.compare import CompareConfig, compare_runs
from embodied.evaluation.records import Outcome, Record, RunFolder
from embodied.protocols import Episode

S, F, E = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ERROR


def write(folder: Path, results: dict[int, list[Outcome]], policy: str = "p", mujoco: str = "3.3.7", **protocol):
    """A run folder: per task the outcomes of its trials."""
    run = RunFolder(folder)
    limits = {str(task): 40 for task in results}
    spec = {"name": policy, "digest": "d", "chunk": 8, "replan": 8}
    simulator = {"mujoco": mujoco}
    run.write_protocol(
        {"policy": spec, "max_steps": limits, "env": {}, "executed": 8, "simulator": simulator} | protocol
    )
    for task, outcomes in results.items():
        for trial, outcome in enumerate(outcomes):
            episode = Episode("points", task, 7 + trial, trial)
            run.append(
                Record(episode, f"t{task}", f"go {task}", outcome, 9, 40, policy, "d", 8, versions={"mujoco": mujoco}),
                None,
            )
    return folder


def test_counts_by_hand(tmp_path):
    a = write(tmp_path / "a", {0: [S, S, F, F], 1: [S, F, F, F]}, "old")
    b = write(tmp_path / "b", {0: [S, F, S, S], 1: [S, S, S, F]}, "new")
    result = compare_runs(a, b)
    cells = result.all.paired
    assert (cells.both, cells.only_a, cells.only_b, cells.neither) == (2, 1, 4, 1)
    assert result.all.rate_a == 3 / 8
    assert result.all.rate_b == 6 / 8
    assert result.all.p == 2 * (1 + 5) / 32  # 1 of 5 discordant
    assert result.mean_difference == (1 / 4 + 2 / 4) / 2
    assert result.all.tango.low < 3 / 8 < result.all.tango.high
    assert result.bootstrap.low <= 3 / 8 <= result.bootstrap.high
    assert [line.name for line in result.tasks] == ["points/0", "points/1"]
    assert result.policies == ("old", "new")
    assert result.notes == []


def test_errors_are_not_paired(tmp_path):
    a = write(tmp_path / "a", {0: [S, E, F]})
    b = write(tmp_path / "b", {0: [S, S, E]})
    result = compare_runs(a, b)
    assert result.all.paired.pairs == 1
    assert len(result.errors) == 2
    c = write(tmp_path / "c", {0: [E, S, S]})
    d = write(tmp_path / "d", {0: [S, E, E]})
    with pytest.raises(ValueError, match="share no episode that both finished"):
        compare_runs(c, d)


def test_other_episodes_are_refused_or_left_out_on_request(tmp_path):
    a = write(tmp_path / "a", {0: [S, S, F]})
    b = write(tmp_path / "b", {0: [S, S], 1: [S]})
    with pytest.raises(
        ValueError, match=r"1 episodes are only in .*/a \(such as points/0/i2/s9/none\); 1 .*/b \(such as"
    ):
        compare_runs(a, b)
    result = compare_runs(a, b, CompareConfig(only_common=True))
    assert (result.all.paired.pairs, result.left_out) == (2, 2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"max_steps": {"0": 80}}, r"max_steps.0: 40 -> 80"),
        ({"env": {"settle_steps": 0}}, r"env.settle_steps: 10 -> 0"),
        ({"env": {}}, r"env.settle_steps: 10 -> nothing"),
        ({"mujoco": "3.4.0"}, r"simulator.mujoco: '3.3.7' -> '3.4.0'"),
    ],
)
def test_other_limits_environment_or_simulator_are_refused(tmp_path, changed, words):
    a = write(tmp_path / "a", {0: [S]}, env={"settle_steps": 10})
    b = write(tmp_path / "b", {0: [S]}, **{"env": {"settle_steps": 10}, **changed})
    with pytest.raises(ValueError, match=words):
        compare_runs(a, b)


def test_other_images_of_the_same_world_are_said(tmp_path):
    a = write(tmp_path / "a", {0: [S]}, env={"settle_steps": 10, "image_size": 128})
    b = write(tmp_path / "b", {0: [S]}, env={"settle_steps": 10, "image_size": 224})
    assert compare_runs(a, b).notes == ["images differ: image_size: 128 -> 224"]


def test_another_replan_is_said(tmp_path):
    a, b = write(tmp_path / "a", {0: [S]}), write(tmp_path / "b", {0: [S]}, executed=5)
    assert compare_runs(a, b).notes == ["replan differs: A looks every 8 actions, B every 5"]


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    a = write(tmp_path / "a", {0: [F] * 6, 1: [S] * 4}, "old")
    b = write(tmp_path / "b", {0: [S] * 6, 1: [S] * 4}, "new")
    out = tmp_path / "result.json"
    assert main(["compare", str(a), str(b), f"out={out}"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["points/0", "6", "0.0", "100.0", "+100.0"] in [row[:5] for row in rows]
    assert ["all", "10", "40.0", "100.0", "+60.0"] in [row[:5] for row in rows]
    written = json.loads(out.read_text())
    assert written["all"]["mcnemar_exact_p"] == 2 / 64
    assert written["all"]["difference"] == 0.6
    assert written["mean_over_tasks"]["difference"] == 0.5


def test_the_commands_errors_say_what_to_do(tmp_path, capsys):
    a = write(tmp_path / "a", {0: [S]})
    assert main(["compare", str(a)]) == 2
    assert "compare takes two run folders" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path)]) == 2
    assert "has no protocol.json" in capsys.readouterr().err
    assert main(["compare", str(a), str(a), "only_comon=true"]) == 2
    assert "did you mean 'only_common'" in capsys.readouterr().err
