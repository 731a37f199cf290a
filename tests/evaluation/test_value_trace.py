"""The value along an evaluation's episodes: kept beside the actions, drawn under the videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import point_mass
import pytest

from embodied.evaluation.evaluate import evaluate, report_run
from embodied.evaluation.records import RunFolder
from embodied.evaluation.report import write_report
from embodied.evaluation.value import rollout_figures
from embodied.evaluation.value_trace import ValueTrace, draw, instructions


class Valued(point_mass.Seeing):
    """Its value is minus the distance, after the chunk, to the goal that the words name."""

    def value(self, observation, actions, instructions) -> np.ndarray:
        position = (observation[point_mass.IMAGE][:, 0, 0].astype(np.float64) - 128) / 120
        after = position + 0.05 * actions[:, : self.spec.replan, :3].sum(1)
        goals = np.stack([point_mass.GOALS[int(words[-1])] for words in instructions])
        return -np.linalg.norm(after - goals, axis=1)


def test_a_trace_has_the_value_of_each_chunk_under_its_own_and_other_instructions(pool, settings):
    summary = evaluate(replace(settings, values=1, episodes=2), Valued(), pool=pool)
    for record in summary.records:
        trace = RunFolder(summary.folder).trajectory(record.episode).trace
        other = "move to goal 1" if record.episode.task == 0 else "move to goal 0"
        assert trace is not None
        assert trace.words == [record.language, other]
        assert trace.steps == list(range(0, record.steps, record.replan))
        values = np.array(trace.values)
        assert values.shape == (len(trace.steps), 2)
        assert values[-1, 0] == pytest.approx(0, abs=0.06)  # the chunk that reaches the goal
        assert values[-1, 0] > values[-1, 1]
        assert (np.diff(values[:, 0]) > -0.03).all()


def test_an_evaluation_without_values_keeps_none_and_a_policy_without_value_is_refused(pool, settings):
    summary = evaluate(replace(settings, episodes=1), Valued(), pool=pool)
    assert all(RunFolder(summary.folder).trajectory(r.episode).trace is None for r in summary.records)
    with pytest.raises(ValueError, match="should have one"):
        evaluate(replace(settings, values=0, run=settings.run + "_other"), point_mass.Seeing(), pool=pool)


def test_the_page_draws_a_curve_an_instruction_under_each_video(pool, settings, tmp_path):
    settings = replace(settings, values=2, episodes=1, videos=3, video_size=64)
    summary = evaluate(settings, Valued(), pool=pool)
    page = Path(write_report(tmp_path / "page", "Values", [report_run(summary, settings, pool)])).read_text()
    drawn = sum(len(RunFolder(summary.folder).trajectory(r.episode).trace.steps) > 1 for r in summary.records)
    assert drawn > 0
    assert page.count('<svg class="value"') == drawn
    assert page.count('class="own"') == drawn
    assert page.count("<title>move to goal") == 3 * drawn


def test_last_values_of_rollouts_tell_failures_from_successes(pool, settings):
    """Some of the point mass's episodes are cut short: their last value is lower than any success's."""
    evaluate(replace(settings, values=0, max_steps=5), Valued(), pool=pool)
    folder = RunFolder(Path(settings.run))
    records = folder.records().values()
    ends = {r.key: folder.trajectory(r.episode).trace.values[-1][0] for r in records}
    good, bad = ([ends[r.key] for r in records if r.success is kind] for kind in (True, False))
    assert good
    assert bad
    figures = rollout_figures([folder])
    assert (figures["rollout.successes"], figures["rollout.failures"]) == (len(good), len(bad))
    assert figures["rollout.failures.end_median"] == pytest.approx(np.median(bad))
    assert figures["rollout.successes.end_p10"] == pytest.approx(np.percentile(good, 10))
    assert figures["rollout.auc_success"] == np.mean([g > b for g in good for b in bad])
    with pytest.raises(ValueError, match="evaluate with values=0"):
        rollout_figures([])


def test_curves_span_the_drawing_and_the_episodes_own_comes_last():
    trace = ValueTrace(["a", "b"], [0, 5], [[-2.0, -1.0], [0.0, -2.0]])
    curves = draw(trace, 10)
    assert [curve["words"] for curve in curves] == ["b", "a"]
    assert curves[1]["path"] == "M0.0 100.0L200.0 0.0"
    assert curves[0]["path"] == "M0.0 50.0L200.0 100.0"
    assert draw(ValueTrace(["a"], [0], [[1.0]]), 10) == []


def test_instructions_are_distinct_and_start_with_the_own():
    tasks = point_mass.tasks("points")
    assert instructions("move to goal 1", tasks, 5) == ["move to goal 1", "move to goal 0", "move to goal 2"]
    assert instructions("elsewhere", tasks, 0) == ["elsewhere"]
