"""Policies in the simulator and in the world model, paired by episode."""

from __future__ import annotations

from pathlib import Path

import pytest

from embodied.evaluation.records import Outcome, Record, RunFolder
from embodied.evaluation.world_policies import evaluate_policies, policy_figures, read_policy
from embodied.protocols import Episode


def run(path: Path, outcomes: str, digest: str = "d") -> Path:
    """s success, f failure, e error, one letter an episode."""
    names = {"s": Outcome.SUCCESS, "f": Outcome.FAILURE, "e": Outcome.ERROR}
    folder = RunFolder(path)
    for seed, letter in enumerate(outcomes):
        episode = Episode("suite", 0, seed)
        folder.append(Record(episode, "t", "words", names[letter], 10, 20, "p", digest, 5), None)
    return path


def test_episodes_pair_and_errors_are_left_out(tmp_path: Path) -> None:
    found = read_policy("p", [run(tmp_path / "a", "sfse"), run(tmp_path / "b", "ssf")])
    assert found.real.tolist() == [1, 0, 1]
    assert found.imagined.tolist() == [1, 1, 0]
    assert found.agreement == pytest.approx(1 / 3)


def test_figures_by_hand(tmp_path: Path) -> None:
    pairs = {}
    for name, real, seen in (("a", "ffff", "ffff"), ("b", "ssff", "sfff"), ("c", "ssss", "ssff")):
        pairs[name] = [str(run(tmp_path / f"{name}-{i}", side)) for i, side in enumerate((real, seen))]
    figures, plot = evaluate_policies(pairs)
    values = {figure.name: figure.value for figure in figures}
    assert values["policy_eval.pearson"] == pytest.approx(1.0)  # 0, 0.5, 1 against 0, 0.25, 0.5
    assert values["policy_eval.spearman"] == pytest.approx(1.0)
    assert values["policy_eval.mmrv"] == 0
    assert values["policy_eval.agreement"] == pytest.approx((1 + 0.75 + 0.5) / 3)
    assert plot.count("<circle") == 3


def test_the_classifier_against_the_simulator(tmp_path: Path) -> None:
    runs = {}
    for name, real, judged, coarse in (
        ("a", "ffff", "fsff", "ffff"), ("b", "ssff", "sfff", "ssff"), ("c", "ssss", "fsss", "fsss"),
    ):  # fmt: skip
        sides = (real, real, judged, coarse)
        runs[name] = [str(run(tmp_path / f"{name}-{i}", side)) for i, side in enumerate(sides)]
    values = {figure.name: figure.value for figure in evaluate_policies(runs)[0]}
    assert values["policy_eval.agreement"] == 1
    assert values["policy_eval.judge.agreement"] == pytest.approx(10 / 12)
    assert values["policy_eval.judge.missed"] == pytest.approx(1 / 5)  # c's first episode fails at this detail
    assert values["policy_eval.judge.false_success"] == pytest.approx(1 / 7)
    assert values["policy_eval.coarse.success"] == pytest.approx(5 / 12)


def test_policies_are_compared_on_the_episodes_that_all_finished(tmp_path: Path) -> None:
    runs = {}
    for name, real, seen in (("a", "ffff", "ffff"), ("b", "sfff", "fsff"), ("c", "esss", "ssff")):
        runs[name] = [str(run(tmp_path / f"{name}-{i}", side)) for i, side in enumerate((real, seen))]
    runs["d"] = [str(run(tmp_path / f"d-{i}", "fssf")) for i in range(2)]
    figures = {figure.name: figure for figure in evaluate_policies(runs)[0]}
    assert "3 episodes each" in figures["policy_eval.pearson"].note
    assert figures["policy_eval.agreement"].value == pytest.approx((1 + 2 / 3 + 1 / 3 + 1) / 4)


def test_what_cannot_be_paired_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs of one policy"):
        read_policy("p", [run(tmp_path / "a", "s", "one"), run(tmp_path / "b", "s", "other")])
    with pytest.raises(ValueError, match="share no finished episode"):
        read_policy("p", [run(tmp_path / "c", "e"), run(tmp_path / "d", "s")])
    with pytest.raises(ValueError, match="at least three"):
        policy_figures([])
    with pytest.raises(ValueError, match="two runs"):
        evaluate_policies({"p": ["a"]})
    runs = {name: [str(run(tmp_path / f"{name}{i}", "sf")) for i in range(2)] for name in "abc"}
    with pytest.raises(ValueError, match="without should name policies"):
        evaluate_policies(runs, ["expret"])
    late = run(tmp_path / "late", "esf")
    late_world = run(tmp_path / "late_world", "esf")
    early = [str(run(tmp_path / f"early{i}", "s")) for i in range(2)]
    with pytest.raises(ValueError, match="share no finished episode"):
        evaluate_policies({"a": early, "b": early, "c": [str(late), str(late_world)]})
