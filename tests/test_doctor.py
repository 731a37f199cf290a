"""`embodied doctor`: its findings on this machine and on broken ones."""

from __future__ import annotations

import sys

import pytest

from embodied.cli import doctor
from embodied.cli.doctor import Status


def test_rendering_works_and_a_broken_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    assert doctor.check_rendering().status is Status.OK
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    broken = doctor.check_rendering()
    assert broken.status is Status.FAIL
    assert "libegl1" in broken.advice


def test_wrong_version_and_missing_package() -> None:
    assert doctor.check_package("numpy", "all", expected="0.0.1").status is Status.FAIL
    missing = doctor.check_package("no-such-package-here", "sim")
    assert missing.status is Status.NOTE
    assert "embodied-stack[sim]" in missing.advice


def test_data_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBODIED_DATA", "/no/such/folder")
    assert doctor.check_data().status is Status.FAIL


def test_exit_status_and_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = doctor.Check("one", Status.OK, sys.version)
    monkeypatch.setattr(doctor, "all_checks", lambda: iter([good]))
    assert doctor.run([]) == 0
    monkeypatch.setattr(doctor, "all_checks", lambda: iter([good, doctor.Check("two", Status.FAIL, "x", "mend it")]))
    assert doctor.run([]) == 1
    assert "-> mend it" in capsys.readouterr().out
