"""`embodied evaluate` as typed: composed configs, errors, and the last line."""

from __future__ import annotations

import pytest

from embodied.cli import main
from embodied.config import compose_config, to_dataclass
from embodied.evaluation.config import EvaluateConfig, Starts
from embodied.evaluation.runner import Batching

POINTS = [
    "env._target_=point_mass.PointMassEnv",
    "env.suite=points",
    "~env.images",
    "env.image_size=16",
    "catalogue.tasks=point_mass.tasks",
    "catalogue.stored=point_mass.count_states",
    "policy=random",
    "workers=1",
    "episodes=2",
    "max_steps=5",
]


@pytest.mark.parametrize("policy", ["expert", "random", "zero"])
@pytest.mark.parametrize("env", ["libero_object", "libero_10", "robosuite"])
def test_groups_compose(policy, env):
    config = to_dataclass(compose_config("evaluate", [f"policy={policy}", f"env={env}"]))
    assert isinstance(config, EvaluateConfig)
    assert config.env["suite"] == env
    assert config.starts is Starts.auto


def test_overrides_are_typed():
    config = to_dataclass(compose_config("evaluate", ["tasks=[0,3]", "batching=single", "starts=random", "replan=5"]))
    assert (config.tasks, config.batching, config.starts, config.replan) == (
        [0, 3],
        Batching.single,
        Starts.random,
        5,
    )


def test_the_last_line_is_the_report(tmp_path, capsys):
    assert main(["evaluate", *POINTS, "tasks=[1]", "videos=0", f"run={tmp_path / 'run'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").exists()
    assert any(line.split()[:2] == ["all", "0/2"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["episods=3"], "did you mean 'episodes'"),
        (["policy=randm"], "did you mean 'random'"),
        (["workers=many"], "workers"),
        (["policy=replay"], "policy.source needs a value"),
        (["env=robosuite", "tasks=[99]", "policy=zero"], "tasks of robosuite should be among 0..10, got [99]"),
        (["env=robosuite", "starts=stored", "policy=zero", "tasks=[0]"], "has 0 stored initial states"),
        (["policy._target_=os.system"], "'os.system': refused"),
        (["env._target_=os.system", "policy=zero"], "'os.system': refused"),
    ],
)
def test_errors_name_what_is_wrong(arguments, words, capsys, tmp_path):
    assert main(["evaluate", f"run={tmp_path / 'run'}", *arguments]) == 2
    assert words in capsys.readouterr().err
