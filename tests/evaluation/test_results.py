"""Published figures: from a real run's records to the file, and from the file to a document's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embodied.bench.figures import Figure, origins, write_figures
from embodied.cli import results as command
from embodied.evaluation import results
from embodied.evaluation.evaluate import evaluate
from embodied.io import append_line

PAGE = "before\n<!-- results points success.* -->\nold text\n<!-- /results -->\nafter\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    return tmp_path


def test_run_to_file_to_table(folder, settings, capsys) -> None:
    summary = evaluate(settings)
    page = folder / "page.md"
    page.write_text(PAGE)
    extra = folder / "extra.json"
    write_figures(extra, [Figure("train_minutes", 12.5, "min")], "test")
    names = [f"runs=['{settings.run}']", f"extra=['{extra}']", f"documents=['{page}']"]
    assert command.run(["name=points", *names]) == 0
    content = json.loads((folder / "results/points.json").read_text())
    suite = summary.suites[0]
    assert content["success.points"]["value"] == pytest.approx(suite.mean)
    assert f"{suite.all.success} of {suite.all.counted} episodes" in content["success.points"]["note"]
    assert content["train_minutes"]["value"] == 12.5
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"| `success.points` | {100 * suite.mean:.1f}% |" in text
    assert "train_minutes" not in text.partition("`embodied")[0], "only the figures that the block names"
    assert "old text" not in text


def test_taken_figures_keep_their_commands(folder) -> None:
    """Also when they are taken on from a published file; a table names the commands of what it shows, and no others."""
    write_figures(folder / "a.json", [Figure("one.a", 1.0, "")], "make a")
    write_figures(folder / "b.json", [Figure("one.b", 2.0, ""), Figure("two", 3.0, "")], "make b")
    results.publish(results.ResultsConfig(name="first", extra=[str(folder / "a.json")]), "publish 1")
    files = [str(folder / "results/first.json"), str(folder / "b.json")]
    path = results.publish(results.ResultsConfig(name="points", extra=files), "publish 2")
    assert [origin["figures"] for origin in origins(path)] == [["one.a"], ["one.b", "two"]]
    both = results.markdown("points", ["one.*"])
    assert "`make a`\\\n" in both
    assert "`make b`\n" in both
    assert "publish" not in both
    assert "make a" not in results.markdown("points", ["two"])


def test_check_finds_a_typed_number(folder) -> None:
    write_figures(folder / "results/points.json", [Figure("success.points", 0.5, "share")], "test")
    page = folder / "page.md"
    page.write_text(PAGE)
    assert command.run(["check=true", f"documents=['{page}']"]) == 1
    assert page.read_text() == PAGE
    assert command.run([f"documents=['{page}']"]) == 0
    assert command.run(["check=true", f"documents=['{page}']"]) == 0
    page.write_text(page.read_text().replace("50.0%", "60.0%"))
    assert command.run(["check=true", f"documents=['{page}']"]) == 1


def test_training_time_is_summed(folder) -> None:
    for name, lines in {"a": [(1, 30.0), (2, 30.0)], "b": [(5, 60.0)]}.items():
        for step, seconds in lines:
            append_line(folder / name / "metrics.jsonl", {"step": step, "cpu_seconds": seconds, "seconds": 2 * seconds})
    cpu, wall = results.training_figures([folder / "a", folder / "b"])
    assert (cpu.value, wall.value) == (2.0, 4.0)
    assert cpu.note.startswith("steps 2 + 5;")
    with pytest.raises(ValueError, match="folders of `embodied train`"):
        results.training_figures([folder / "none"])


def test_errors(folder) -> None:
    page = folder / "page.md"
    page.write_text(PAGE)
    with pytest.raises(ValueError, match="publish it first"):
        results.write_tables([str(page)])
    with pytest.raises(ValueError, match="needs name"):
        results.publish(results.ResultsConfig(name="points"), "test")
    with pytest.raises(ValueError, match="folders of `embodied evaluate`"):
        results.publish(results.ResultsConfig(name="points", runs=[str(folder)]), "test")


def test_documents_of_this_repository_say_what_the_files_say(monkeypatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    pages = [str(root / "README.md"), str(root / "docs")]
    assert results.write_tables(pages, check=True) == []
