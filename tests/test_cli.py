"""The console command: help without imports, near names, exit statuses; configs that name the nearest right key."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from embodied.cli import COMMANDS, main
from embodied.config import ConfigError, compose_config
from embodied.registry import Registry, build, registry


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_spec(COMMANDS[name]) is not None
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()[0]) <= 110, "the first line is the entry in the list"
    assert f"embodied {name}" in shown, "help should show how the command is called"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    assert "did you mean 'doctor'" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from embodied.cli import main; main([]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'episodes'"):
        compose_config("evaluate", ["episods=3"])


def test_unknown_group_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'libero_object'"):
        compose_config("evaluate", ["env=libero_objct"])


def test_wrong_type_says_what_was_expected() -> None:
    with pytest.raises(ConfigError, match=r"(?i)'many'.*int"):
        compose_config("evaluate", ["workers=many"])
    with pytest.raises(ConfigError, match=r"\[goal:other=1\]' cannot be read .* in double quotes"):
        compose_config("evaluate", ["policy=checkpoint", "policy.path=x", "perturbations=[goal:other=1]"])


def test_configs_are_read_only() -> None:
    config = compose_config("evaluate")
    with pytest.raises(Exception, match="read-only"):
        config.workers = 3


def test_build_refuses_unregistered_targets() -> None:
    with pytest.raises(ValueError, match="refused"):
        build({"_target_": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="refused"):
        build({"_target_": "subprocess.run"})


def test_every_registered_target_exists() -> None:
    for path in sorted(registry().targets):
        assert callable(registry().resolve(path)), path


def test_registry_resolves_only_what_was_added() -> None:
    mine = Registry()
    mine.target("json.dumps")
    assert mine.resolve("json.dumps")({"a": 1}) == '{"a": 1}'
    with pytest.raises(ValueError, match=r"got 'json\.loads'"):
        mine.resolve("json.loads")
