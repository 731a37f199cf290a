from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from embodied.io import read_lines
from embodied.training.config import LogConfig, OptimizerName, StageConfig, TrainConfig
from embodied.training.guard import BadBatchError, describe
from embodied.training.loop import Job, train
from embodied.training.metrics import MetricsLog
from embodied.training.optimizer import Ema, learning_rate, make_optimizer
from embodied.transforms import Pipeline


class Line(torch.nn.Module):
    """y = w x + b, squared error."""

    stages = ("fit",)
    frozen = ()

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1, 1))
        self.b = torch.nn.Parameter(torch.zeros(1))

    def config(self) -> dict[str, Any]:
        return {}

    def training_step(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        product = batch["x"] @ self.w
        loss = (product[:, 0] + self.b - batch["y"]).square().mean()
        return loss, {"dtype_is_bf16": torch.tensor(float(product.dtype == torch.bfloat16))}


class Batches:
    """y = 3 x - 1 on fixed numbers; `bad`: batch numbers whose second sample is not a number."""

    def __init__(self, size: int, bad: tuple[int, ...] = ()) -> None:
        self.size, self.bad, self.number = size, bad, 0

    def next(self) -> dict[str, Any]:
        first = self.number * self.size
        x = np.sin(np.arange(first, first + self.size)).astype(np.float32)
        y = 3 * x - 1
        if self.number in self.bad:
            y[1] = np.nan
        self.number += 1
        rows = np.arange(first, first + self.size)
        return {"x": x[:, None], "y": y, "episode_index": rows // 10, "frame_index": rows % 10}

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["batch"]


def job(run: Path, loader: Batches, **stage: Any) -> Job:
    settings = {"name": "fit", "steps": 3, "batch_size": loader.size, "warmup": 0, "ema": 0.0, "lr": 0.1} | stage
    config = TrainConfig(stage=StageConfig(**settings), log=LogConfig(every=1, progress=False), cpu=True)
    return Job(Line(), loader, Pipeline(), run, config)  # type: ignore[arg-type]


def accelerator(precision: str = "no") -> Accelerator:
    return Accelerator(cpu=True, mixed_precision=precision)


def test_learns_the_line(tmp_path):
    task = job(tmp_path, Batches(16), steps=200, weight_decay=0.0)
    train(task, accelerator())
    assert task.model.w.item() == pytest.approx(3, abs=0.02)
    assert task.model.b.item() == pytest.approx(-1, abs=0.02)


def test_the_first_step_by_hand(tmp_path):
    """Adam's first step moves each weight by lr against the sign of its gradient, decay applies to the matrix only."""
    task = job(tmp_path, Batches(4), steps=1, lr=0.1, weight_decay=0.5)
    train(task, accelerator())
    assert task.model.w.item() == pytest.approx(1 * (1 - 0.1 * 0.5) + 0.1, abs=1e-5)  # gradient of w < 0: 3 > 1
    x = np.sin(np.arange(4))
    assert (2 * (x - (3 * x - 1))).mean() > 0  # the gradient of b
    assert task.model.b.item() == pytest.approx(-0.1, abs=1e-5)


def test_a_bad_batch_is_skipped_and_counted(tmp_path):
    task = job(tmp_path / "bad", Batches(4, bad=(1,)), steps=2, lr=0.1, final_lr=0.1)
    one = job(tmp_path / "one", Batches(4), steps=1, lr=0.1, final_lr=0.1)
    progress = train(task, accelerator())
    train(one, accelerator())
    assert (progress.step, progress.skipped) == (2, 1)
    assert torch.equal(task.model.w, one.model.w)
    assert read_lines(tmp_path / "bad/metrics.jsonl")[-1]["skipped"] == 1


def test_bad_batches_in_a_row_stop_and_are_named(tmp_path):
    task = job(tmp_path, Batches(4, bad=(1, 3, 4, 5)), steps=9)
    with pytest.raises(BadBatchError, match=r"3 batches in a row .* step 5.* episode 2 frame 1 \(y\)"):
        train(task, accelerator())
    assert torch.isfinite(task.model.w).all()


def test_finite_inputs_are_said_to_be_finite():
    batch = {"x": torch.ones(2, 3), "episode_index": [4, 4], "frame_index": [0, 7], "dataset_index": [1, 0]}
    assert describe([batch]) == "only finite inputs, from data set 1 episode 4 frame 0, data set 0 episode 4 frame 7"


def test_accumulation_equals_one_large_batch(tmp_path):
    parts = job(tmp_path / "parts", Batches(4), accumulate=2, clip_norm=0.5)
    whole = job(tmp_path / "whole", Batches(8), clip_norm=0.5)
    progress = train(parts, accelerator())
    train(whole, accelerator())
    assert progress.samples == 24
    torch.testing.assert_close(parts.model.w, whole.model.w, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.model.b, whole.model.b, atol=1e-6, rtol=0)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tmp_path):
    task = job(tmp_path, Batches(16), steps=60)
    train(task, accelerator("bf16"))
    assert task.model.w.dtype == torch.float32
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["dtype_is_bf16"] == 1.0
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


def test_hooks_see_the_averaged_weights(tmp_path):
    task = job(tmp_path, Batches(4), steps=4, ema=0.9)
    seen: list[tuple[int, float]] = []
    task.hooks = [lambda step, model: seen.append((step, model.w.item())) or {"hook": 7.0}]
    task.config.evaluate_every = 2
    train(task, accelerator())
    assert [step for step, _ in seen] == [2, 4]
    assert seen[-1][1] != task.model.w.item()
    assert [line["hook"] for line in read_lines(tmp_path / "metrics.jsonl") if "hook" in line] == [7.0, 7.0]


def test_old_checkpoints_are_removed(tmp_path):
    task = job(tmp_path, Batches(4), steps=5)
    task.config.checkpoint_every, task.config.keep = 1, 2
    train(task, accelerator())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000004", "step-0000005"]


def test_learning_rate_by_hand():
    stage = StageConfig(name="fit", steps=110, lr=1.0, final_lr=0.2, warmup=10)
    assert learning_rate(0, stage) == pytest.approx(0.1)
    assert learning_rate(9, stage) == pytest.approx(1.0)
    assert learning_rate(60, stage) == pytest.approx(0.6)
    assert learning_rate(110, stage) == pytest.approx(0.2)
    assert learning_rate(35, stage) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_ema_by_hand():
    model = Line()
    ema = Ema(model, 0.9)
    model.w.data.fill_(5.0)
    ema.update()  # decay (1 + 1) / (10 + 1)
    assert ema.weights()["w"].item() == pytest.approx(5 + 2 / 11 * (1 - 5))
    with ema.applied():
        assert model.w.item() == pytest.approx(5 - 8 / 11)
        assert not model.training
    assert model.w.item() == 5.0
    assert model.training


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="leaves nothing to train"):
        make_optimizer(Line().requires_grad_(False), StageConfig(name="fit", steps=1))


def test_a_module_may_learn_more_slowly():
    model = torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimizer = make_optimizer(model, StageConfig(name="fit", steps=1, lr_scale={"tower": 0.1}))
    scale = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert [scale[id(p)] for p in model["tower"].parameters()] == [0.1, 0.1]
    assert [scale[id(p)] for p in model["head"].parameters()] == [1.0, 1.0]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model["tower"].weight)] > 0 == decay[id(model["tower"].bias)]
    for wrong, message in (({"towel": 0.1}, "tower, head"), ({"tower": -1}, "positive"), (0.1, "positive")):
        with pytest.raises(ValueError, match=message):
            make_optimizer(model, StageConfig(name="fit", steps=1, lr_scale=wrong))


class Net(Line):
    """The same line through matrices, a convolution and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(8, 8)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Conv1d(2, 8, 3), torch.nn.Flatten())
        self.out = torch.nn.Linear(16, 1, bias=False)

    def training_step(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = batch["x"] @ self.w + self.b + self.table(torch.arange(len(batch["x"])))
        x = self.net[1](self.net[0](x).unflatten(1, (2, 4)))
        return (self.out(self.net[2](x))[:, 0] - batch["y"]).square().mean(), {}


def muon_job(run: Path, **stage: Any) -> Job:
    task = job(run, Batches(8), optimizer=OptimizerName.muon, **{"lr": 0.01} | stage)
    task.model = Net()
    return task


def test_muon_moves_matrices_by_orthogonal_ones():
    """Steps have the size of Adam's: singular values around 0.2 sqrt(largest side); the rest is NAdam's."""
    model = Net()
    optimizer = make_optimizer(
        model, StageConfig(name="fit", steps=1, optimizer=OptimizerName.muon, lr=0.01, weight_decay=0.0)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    step = {name: (p.detach() - before[name]) / 0.01 for name, p in model.named_parameters()}
    for name in ("net.0.weight", "net.1.weight"):
        sizes = torch.linalg.svdvals(step[name].flatten(1)) / (0.2 * math.sqrt(8))
        assert 0.6 < sizes.median() < 1.3, name  # five Newton-Schulz iterations: about 0.7 to 1.2
        assert sizes.max() < 1.4, name
        assert (step[name] * model.get_parameter(name).grad).sum() < 0, name
    for name in ("table.weight", "net.0.bias"):
        assert step[name].abs().median() == pytest.approx(1 + 0.9, abs=0.01), name


@pytest.mark.parametrize("emulated", [True, False])
def test_muon_computes_in_float32_where_bfloat16_is_emulated(monkeypatch, emulated):
    from timm.optim import muon

    import embodied.training.muon as ours

    original, seen = muon.zeropower_via_newtonschulz, []

    def spy(*arguments: Any, **settings: Any) -> torch.Tensor:
        seen.append(original(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", spy)
    monkeypatch.setattr(ours, "emulates_bfloat16", lambda device: emulated)
    model = Net()
    optimizer = make_optimizer(model, StageConfig(name="fit", steps=1, optimizer=OptimizerName.muon))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert seen
    assert {value.dtype for value in seen} == {torch.float32 if emulated else torch.bfloat16}
    assert muon.zeropower_via_newtonschulz is spy


def test_muon_decays_matrices_only_and_keeps_the_modules_rates():
    stage = StageConfig(name="fit", steps=1, optimizer=OptimizerName.muon, lr_scale={"net": 0.1}, weight_decay=0.3)
    model = Net()
    groups = {id(p): group for group in make_optimizer(model, stage).param_groups for p in group["params"]}
    found = {name: groups[id(p)] for name, p in model.named_parameters()}
    assert {name: group["weight_decay"] for name, group in found.items()} == {
        name: 0.3 if p.ndim > 1 else 0.0 for name, p in model.named_parameters()
    }
    assert {name for name, group in found.items() if group.get("use_fallback")} == {
        "b",
        "net.0.bias",
        "net.1.bias",
        "table.weight",
    }
    assert {name for name, group in found.items() if group["scale"] == 0.1} == {
        name for name in found if name.startswith("net.")
    }


def test_muon_resumes_bit_for_bit(tmp_path):
    whole, half = muon_job(tmp_path / "whole", steps=4), muon_job(tmp_path / "half", steps=4)
    half.config.stop_after = 2
    train(whole, accelerator())
    train(half, accelerator())
    rest = muon_job(tmp_path / "half", steps=4)
    train(rest, accelerator())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    losses = [[line["loss"] for line in read_lines(tmp_path / run / "metrics.jsonl")] for run in ("whole", "half")]
    assert losses[0] == losses[1]


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, LogConfig(), 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricsLog(tmp_path, LogConfig(), 2)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path, LogConfig(tensorboard=True), 0)
    log.write(1, {"loss": 0.5})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
