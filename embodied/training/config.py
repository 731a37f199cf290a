"""Settings of `embodied train`: what is trained on what, by which stage, and how it is logged and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Precision(Enum):
    """fp32, or bf16 autocast with fp32 weights."""

    fp32 = "no"
    bf16 = "bf16"


class Balance(Enum):
    """How often samples are drawn: each frame alike (times its set's weight), or each instruction alike."""

    frames = "frames"
    tasks = "tasks"


class OptimizerName(Enum):
    """AdamW, or Muon for matrices and AdamW for the rest: fewer steps, each a little dearer."""

    adamw = "adamw"
    muon = "muon"


@dataclass
class DataSet:
    """One frame cache. `source`: a LeRobot folder, or its name under EMBODIED_DATA; builds `path` if that is missing.

    weight: share of samples relative to the other sets; null: by size. Empty `suites`: all.
    without: instructions left out, as when newer demonstrations of a task take the place of this set's.
    """

    path: str = MISSING
    source: str | None = None
    weight: float | None = None
    suites: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    success_only: bool = False
    limit_per_task: int | None = None


@dataclass
class DataConfig:
    """Data sets by name, mixed.

    extra: more of them by path, frame caches or LeRobot folders (cached beside them as FOLDER.cache); or settings, as
    {path: FOLDER, without: [INSTRUCTION]}.
    holdout: share of each task's episodes kept for the validation loss, drawn by split_seed (null: the run's seed).
    skip_still: action chunks leave out frames in which the demonstrator waits; see `embodied.data.still`.
    """

    sets: dict[str, DataSet] = field(default_factory=dict)
    extra: list[Any] = field(default_factory=list)
    balance: Balance = Balance.frames
    holdout: float = 0.0
    split_seed: int | None = None
    skip_still: bool = False


class StatisticsOf(Enum):
    """What transforms are bound to when a stage starts from a checkpoint: the checkpoint's, or the data's anew."""

    checkpoint = "checkpoint"
    data = "data"


@dataclass
class Part:
    """Modules of another checkpoint: its module -> the model's, such as {readers: focus}; shapes must match."""

    checkpoint: str = MISSING
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class StageConfig:
    """One stage of training. batch_size: per process and micro-batch; init: checkpoint whose weights it starts from.

    optimizer: see `embodied.training.optimizer.make_optimizer`.

    lr_scale: what the learning rates of modules are multiplied with, such as {vision.tower: 0.3} for pretrained ones.

    fresh: modules that begin anew instead, such as [expert]; the checkpoint may lack them or have them in other shapes.

    parts: modules whose weights come from other checkpoints, with or without `init`, which may then lack them.

    statistics: a model that goes on keeps the normalisation that its weights were trained under; `data` computes it
    from these data sets, as for another robot.
    """

    name: str = MISSING
    init: str | None = None
    fresh: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    statistics: StatisticsOf = StatisticsOf.checkpoint
    steps: int = MISSING
    batch_size: int = 64
    accumulate: int = 1
    optimizer: OptimizerName = OptimizerName.adamw
    lr: float = 1e-3
    final_lr: float = 0.0
    lr_scale: Any = None
    warmup: int = 500
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip_norm: float = 1.0
    ema: float = 0.999


@dataclass
class LogConfig:
    """every: steps between two lines of metrics. TensorBoard and Weights & Biases are used only when asked for."""

    every: int = 50
    tensorboard: bool = False
    wandb_project: str | None = None
    progress: bool = True


@dataclass
class TrainConfig:
    """Give policy=NAME or world_model=NAME, stage=NAME and data=NAME. run: an earlier run's folder is gone on with.

    stop_after: steps of this call, then checkpoint and leave. evaluate_every: steps between two rounds of validation
    and hooks, 0: only at the end. keep: newest checkpoints that stay. max_bad_batches: non-finite batches in a row
    before it stops. ahead: batches gathered in the background. compile: torch.compile of the modules that the model
    names in `compiled`; a minute's wait, then fewer and larger kernels.
    """

    policy: Any = None
    world_model: Any = None
    data: DataConfig = field(default_factory=DataConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    run: str | None = None
    seed: int = 0
    precision: Precision = Precision.fp32
    compile: bool = False
    cpu: bool = False
    threads: int | None = None
    stop_after: int | None = None
    checkpoint_every: int = 1000
    keep: int = 2
    evaluate_every: int = 1000
    validation_batches: int = 20
    hooks: list[Any] = field(default_factory=list)
    max_bad_batches: int = 3
    ahead: int = 4
    log: LogConfig = field(default_factory=LogConfig)
