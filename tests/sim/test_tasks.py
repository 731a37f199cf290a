"""Suites and tasks are listed without a simulator; init states load without running what a file says."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sim import tasks as table
from sim.init_states import load_array

pytest.importorskip("libero")


def test_the_six_suites_have_their_tasks_and_limits() -> None:
    counts = {suite: len(table.tasks(suite)) for suite in table.suites()}
    limits = {suite: table.tasks(suite)[0].max_steps for suite in table.suites()}
    assert counts == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
        "robosuite": 11,
    }
    del limits["robosuite"]
    assert limits == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


def test_words_are_the_benchmarks() -> None:
    assert table.get_task("libero_object", 0).language == "pick up the alphabet soup and place it in the basket"
    assert (
        table.get_task("libero_90", 0).language == "close the top drawer of the cabinet"
    )  # KITCHEN_SCENE10: two digits
    assert table.get_task("libero_10", 9).language == "put the yellow and white mug in the microwave and close it"
    assert table.get_task("robosuite", 3).language == "put the milk carton in its bin"


def test_unknown_suite_and_task_name_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"libero_spatial.*'libero_spacial'"):
        table.tasks("libero_spacial")
    with pytest.raises(ValueError, match=r"0\.\.9, got 10"):
        table.get_task("libero_goal", 10)


def test_listing_imports_no_simulator() -> None:
    code = (
        "import sys; from sim.tasks import tasks; tasks('libero_90');"
        "print(sorted({'mujoco', 'torch', 'libero', 'robosuite', 'gymnasium'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_init_states_are_the_ones_torch_reads() -> None:
    torch = pytest.importorskip("torch")
    states = table.init_states("libero_goal", 3)
    name = table.get_task("libero_goal", 3).name
    path = table.package_root() / "init_files" / "libero_goal" / f"{name}.pruned_init"
    assert states.shape[0] == 50
    np.testing.assert_array_equal(states, torch.load(path, weights_only=False))
    with pytest.raises(ValueError, match="read-only"):
        states[0] = 0
    with pytest.raises(ValueError, match="seed"):
        table.init_states("robosuite", 0)


class _Hostile:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def _archive(path: Path, value: object) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


def test_a_hostile_file_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    sign = tmp_path / "was_run"
    with pytest.raises(ValueError, match="refused"):
        load_array(_archive(tmp_path / "hostile", _Hostile(sign)))
    with pytest.raises(ValueError, match="refused"):
        load_array(_archive(tmp_path / "hidden", np.array([_Hostile(sign)], dtype=object)))
    assert not sign.exists()


@pytest.mark.parametrize("value", [np.zeros((2, 3), np.float32), np.zeros(4), [1.0]])
def test_other_contents_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"should hold a float64 array \(n, state\)"):
        load_array(_archive(tmp_path / "other", value))


def test_a_plain_array_comes_back(tmp_path: Path) -> None:
    value = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(load_array(_archive(tmp_path / "plain", value)), value)
    (tmp_path / "no_zip").write_bytes(io.BytesIO(b"text").getvalue())
    with pytest.raises(ValueError, match="refused"):
        load_array(tmp_path / "no_zip")
