"""Real-time chunking: the next chunk is generated to agree with the part of the last one that will still be executed.

Black, Galliker, Levine, "Real-Time Execution of Action Chunking Flow Policies" (2025), eqs. 1-4 and algorithm 1, under
LeRobot's parameter names. A flow-matching policy opts in with a method

    act_with_prefix(observation, slots, prefix, guidance) -> actions (B, chunk, action_dim)

where `prefix` (B, L, action_dim) holds the actions planned from the present tick on, in the units of `act`, and
`guidance` is a PrefixGuidance. The policy brings the prefix into its own (normalised) space and calls
`guided_velocity` in place of its velocity in every integration step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from embodied.protocols import Observation

if TYPE_CHECKING:
    import torch


class PrefixAttentionSchedule(Enum):
    """How the weight falls from the actions that are certain to run to those past the execution horizon."""

    ZEROS = "ZEROS"
    ONES = "ONES"
    LINEAR = "LINEAR"
    EXP = "EXP"


@dataclass(frozen=True)
class PrefixGuidance:
    """inference_delay: actions that will have run before the chunk arrives; execution_horizon: where guidance ends."""

    inference_delay: int
    execution_horizon: int = 10
    max_guidance_weight: float = 10.0
    prefix_attention_schedule: PrefixAttentionSchedule = PrefixAttentionSchedule.LINEAR


@runtime_checkable
class PrefixPolicy(Protocol):
    def act_with_prefix(
        self, observation: Observation, slots: Sequence[int], prefix: np.ndarray, guidance: PrefixGuidance
    ) -> np.ndarray: ...


def prefix_weights(
    inference_delay: int, execution_horizon: int, chunk: int, schedule: PrefixAttentionSchedule
) -> np.ndarray:
    """Weights (chunk,): 1 before the delay, falling to 0 at the execution horizon. Eq. 5 for EXP."""
    end = min(execution_horizon, chunk)
    start = min(inference_delay, end)
    index = np.arange(chunk)
    if schedule is PrefixAttentionSchedule.ZEROS:
        return (index < start).astype(np.float32)
    if schedule is PrefixAttentionSchedule.ONES:
        return (index < end).astype(np.float32)
    falling = np.clip((end - index) / (end - start + 1), 0.0, 1.0)
    if schedule is PrefixAttentionSchedule.EXP:
        falling = falling * np.expm1(falling) / (np.e - 1)
    return np.where(index < start, 1.0, np.where(index < end, falling, 0.0)).astype(np.float32)


def guidance_weight(tau: float, max_guidance_weight: float) -> float:
    """min(beta, (1 - tau) / tau * 1 / r^2) with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2): eqs. 2 and 4."""
    if tau <= 0.0 or tau >= 1.0:
        return max_guidance_weight
    inverse_r2 = (tau**2 + (1 - tau) ** 2) / (1 - tau) ** 2
    return min(max_guidance_weight, (1 - tau) / tau * inverse_r2)


def guided_velocity(
    velocity: Callable[[torch.Tensor], torch.Tensor],
    x_BTD: torch.Tensor,
    tau: float,
    prefix_BLD: torch.Tensor,
    guidance: PrefixGuidance,
    through_model: bool = True,
) -> torch.Tensor:
    """Velocity (B, T, D) guided towards the prefix: eq. 2.

    tau runs from 0 (noise) to 1 (actions), and `velocity` points to the actions. A model whose time runs from 1 to 0
    and whose velocity points to the noise (openpi, LeRobot) passes tau = 1 - time and the negative of its velocity,
    and negates the result. through_model: the paper's vector-Jacobian product; False takes the Jacobian of the model
    as zero, which needs no backward pass and is what LeRobot 0.6.1 computes.
    """
    import torch

    chunk = x_BTD.shape[1]
    known = min(prefix_BLD.shape[1], chunk)
    target_BTD = torch.zeros_like(x_BTD)
    target_BTD[:, :known, : prefix_BLD.shape[2]] = prefix_BLD[:, :known].to(x_BTD)
    horizon = min(guidance.execution_horizon, known)
    weights = prefix_weights(guidance.inference_delay, horizon, chunk, guidance.prefix_attention_schedule)
    weights_T1 = torch.from_numpy(weights).to(x_BTD)[:, None]
    if not through_model:
        v_BTD = velocity(x_BTD)
        correction = (target_BTD - (x_BTD + (1 - tau) * v_BTD)) * weights_T1
    else:
        with torch.enable_grad():
            x_BTD = x_BTD.detach().requires_grad_(True)
            v_BTD = velocity(x_BTD)
            estimate = x_BTD + (1 - tau) * v_BTD  # eq. 3: the chunk this velocity leads to
            error = ((target_BTD - estimate) * weights_T1).detach()
            (correction,) = torch.autograd.grad(estimate, x_BTD, error)
    return (v_BTD + guidance_weight(tau, guidance.max_guidance_weight) * correction).detach()
