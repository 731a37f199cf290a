"""Settings of post-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PosttrainConfig:
    """Post-training on own rollouts.

    candidates K; contexts: rollout states a round; own: an own rollout of 0 .. own interactions leads to the state;
    lengths: a group's candidates run for min .. max interactions; steps: sampler steps of rollouts; round: training
    steps a round; batch: chunks a training step draws from the round, all candidates of a group together, so a multiple
    of K. clip: a of r's clip. weights: of the reward's metrics. old_rate, old_max: old <- d old + (1 - d) new with
    d = min(old_rate * step, old_max). spread_floor: within-group deviation of PSNR in dB; a group below it has no say
    (r = 1/2), a round whose mean is below it is warned about. watch: training steps over which the teacher-forced loss
    is compared with the reference's; tolerance: the relative rise that stops training.
    """

    candidates: int = 8
    contexts: int = 4
    own: int = 6
    lengths: list[int] = field(default_factory=lambda: [1, 3])
    steps: int = 8
    round: int = 8
    batch: int = 8
    beta: float = 0.5
    clip: float = 5.0
    kl: float = 1e-4
    weights: dict[str, float] = field(default_factory=lambda: {"lpips": 1.0, "ssim": 1.0, "psnr": 1.0})
    old_rate: float = 0.001
    old_max: float = 0.5
    spread_floor: float = 0.05
    watch: int = 200
    tolerance: float = 0.1
    seed: int = 0
    lora: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.batch % self.candidates:
            raise ValueError(
                f"posttrain.batch should be a multiple of posttrain.candidates ({self.candidates}), since all "
                f"candidates of a chunk are trained on together, got {self.batch}"
            )
