"""Language-conditioned contrastive RL of PRTS: two heads, two losses (paper, Sec. 3; the release has neither).

phi(s, a) and psi(l) lie on the unit sphere; exp(log_temperature) * phi . psi is trained in both directions:
- (s, a) -> l: which of the batch's distinct instructions does this pair's trajectory fulfil, weight w_i;
- l -> (s, a): which of the batch's pairs lead to this goal, soft labels q_ij = w_j / sum of w over the goal's pairs;
with w_i = gamma^(T_i - t_i). At the optimum the scaled inner product is log Q(l | s, a) + C(l), the log discounted
probability that the goal is reached. Pairs of one instruction are one class, never each other's negatives.

Only log-sum-exps need the whole matrix of logits, so they are computed in chunks and again in the backward pass.

Shapes: N pairs, G distinct goals, D = feature size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

LARGEST_LOG_TEMPERATURE = math.log(100.0)  # as CLIP: keeps a separable batch from driving the logits to infinity


@dataclass
class CRLConfig:
    """The heads and the loss. Sizes are the paper's; `policy=prts_nano` uses smaller ones."""

    width: int = 1024
    layers: int = 4
    features: int = 256
    last_layer_init: float = 1e-12
    log_temperature: float = math.log(1 / 0.2)
    gamma: float = 0.995
    chunk: int = 1024  # rows of logits in memory at a time


class CRLHead(nn.Module):
    """Hidden state (N, in) -> unit vector (N, D): linear, LayerNorm, SiLU, four times, then linear.

    The last layer starts at +-1e-12, so the first gradients of the features are of order 1e10: clip the gradient's
    norm (Adam is then indifferent to their size), or their trace stays in Adam's second moment for thousands of steps.
    """

    def __init__(self, in_features: int, config: CRLConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(config.layers):
            width_in = in_features if i == 0 else config.width
            layers += [nn.Linear(width_in, config.width), nn.LayerNorm(config.width), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(config.width, config.features)
        nn.init.uniform_(self.last.weight, -config.last_layer_init, config.last_layer_init)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return normalize(self.last(self.hidden(hidden_ND.float())), dim=-1, eps=1e-30)


class CRLHeads(nn.Module):
    """phi, psi and the temperature: what pretraining learns and post-training freezes."""

    def __init__(self, in_features: int, config: CRLConfig) -> None:
        super().__init__()
        self.phi = CRLHead(in_features, config)
        self.psi = CRLHead(in_features, config)
        self.log_temperature = nn.Parameter(torch.tensor(config.log_temperature))

    def scale(self) -> Tensor:
        return self.log_temperature.clamp(max=LARGEST_LOG_TEMPERATURE).exp()

    def value(self, phi_ND: Tensor, psi_ND: Tensor) -> Tensor:
        """(N,) scaled inner product: the log discounted goal occupancy, up to a constant of the goal."""
        return self.scale() * (phi_ND * psi_ND).sum(-1)


@dataclass(frozen=True)
class Pairs:
    """A batch of (state, action, goal): phi (N, D), psi (N, D), goal id (N,) int64, weight (N,)."""

    phi_ND: Tensor
    psi_ND: Tensor
    goal_N: Tensor
    weight_N: Tensor


def goal_id(instruction: str) -> int:
    """A 63-bit id, equal on every rank for equal instructions (case and outer spaces aside)."""
    digest = hashlib.sha256(instruction.strip().lower().encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def goal_ids(instructions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([goal_id(text) for text in instructions], dtype=torch.long, device=device)


def discount_weights(steps_to_goal_N: Tensor, gamma: float) -> Tensor:
    """w = gamma^(T - t). Infinite steps (the goal is never reached) give 0: a negative, never a positive."""
    if bool((steps_to_goal_N < 0).any()):
        raise ValueError(f"steps to the goal (T - t) should be at least 0, got {float(steps_to_goal_N.min())}")
    return torch.exp(steps_to_goal_N * math.log(gamma))


def distinct_goals(goal_N: Tensor, psi_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct goals' psi (G, D), from the first pair of each, and the goal index (N,) of every pair."""
    _, index_N = torch.unique(goal_N, return_inverse=True)
    goals = int(index_N.max()) + 1
    order_N = torch.arange(len(goal_N), device=goal_N.device)
    first_G = torch.full((goals,), len(goal_N), device=goal_N.device).scatter_reduce(0, index_N, order_N, "amin")
    return psi_ND.index_select(0, first_G), index_N


def action_to_goal_loss(
    phi_ND: Tensor, psi_GD: Tensor, goal_N: Tensor, weight_N: Tensor, scale: Tensor, chunk: int = 1024
) -> Tensor:
    """(s, a) -> l: mean over pairs, weighted by w, of the cross-entropy over the distinct goals (`goal_N`)."""
    positive_N = scale * (phi_ND * psi_GD.index_select(0, goal_N)).sum(-1)
    entropy_N = chunked_logsumexp(phi_ND, psi_GD, scale, chunk) - positive_N
    return (weight_N * entropy_N).sum() / weight_N.sum().clamp(min=torch.finfo(weight_N.dtype).tiny)


def goal_to_action_loss(
    phi_ND: Tensor, psi_GD: Tensor, goal_N: Tensor, weight_N: Tensor, scale: Tensor, chunk: int = 1024
) -> Tensor:
    """l -> (s, a): mean over goals of the cross-entropy over all pairs against q_ij = w_j / (the goal's sum of w).

    Since q sums to one, it is log-sum-exp minus the expected positive logit. A goal without positive weight counts not.
    """
    total_G = torch.zeros(len(psi_GD), dtype=weight_N.dtype, device=weight_N.device).index_add(0, goal_N, weight_N)
    reached_G = total_G > 0
    label_N = weight_N / total_G.clamp(min=torch.finfo(weight_N.dtype).tiny).index_select(0, goal_N)
    positive_N = scale * (phi_ND * psi_GD.index_select(0, goal_N)).sum(-1)
    expected_G = torch.zeros_like(total_G).index_add(0, goal_N, label_N * positive_N)
    entropy_G = chunked_logsumexp(psi_GD, phi_ND, scale, chunk) - expected_G
    return (entropy_G * reached_G).sum() / reached_G.sum().clamp(min=1)


def contrastive_losses(pairs: Pairs, heads: CRLHeads, chunk: int = 1024) -> dict[str, Tensor]:
    """Both losses over the pairs of all ranks, each rank the same number of them. Every rank gets the same values.

    Averaging parameter gradients over ranks, as data-parallel training does, gives the single-process gradient. Never
    in bfloat16, whose steps between logits are larger than what a step of the episode changes.
    """
    whole = gather_pairs(pairs)
    psi_GD, index_N = distinct_goals(whole.goal_N, whole.psi_ND)
    arguments = (whole.phi_ND, psi_GD, index_N, whole.weight_N, heads.scale(), chunk)
    with torch.autocast(whole.phi_ND.device.type, enabled=False):
        return {"action_to_goal": action_to_goal_loss(*arguments), "goal_to_action": goal_to_action_loss(*arguments)}


def chunked_logsumexp(rows_RD: Tensor, columns_CD: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """(R,) log of the row sums of exp(scale * rows @ columns^T), with at most `chunk` rows of logits in memory."""
    if chunk < 1:
        raise ValueError(f"chunk should be at least 1 row, got {chunk}")
    if len(rows_RD) <= chunk:
        return _logsumexp(rows_RD, columns_CD, scale)
    parts = [
        checkpoint(_logsumexp, rows_cD, columns_CD, scale, use_reentrant=False) for rows_cD in rows_RD.split(chunk)
    ]
    return torch.cat(parts)


def _logsumexp(rows_RD: Tensor, columns_CD: Tensor, scale: Tensor) -> Tensor:
    return (scale * (rows_RD @ columns_CD.T)).logsumexp(-1)


def gather_pairs(pairs: Pairs) -> Pairs:
    """The pairs of all ranks, differentiable. ValueError for unequal numbers.

    Unchanged without torch.distributed, and where no gradient is wanted: validation runs on one rank, which no other
    would answer.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1 or not torch.is_grad_enabled():
        return pairs
    count = torch.tensor([len(pairs.goal_N)], device=pairs.goal_N.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    if len({int(c) for c in counts}) != 1:
        raise ValueError(f"ranks should hold equally many pairs, got {[int(c) for c in counts]}: drop the last batch")
    goals = [torch.zeros_like(pairs.goal_N) for _ in counts]
    dist.all_gather(goals, pairs.goal_N.contiguous())
    weights = [torch.zeros_like(pairs.weight_N) for _ in counts]
    dist.all_gather(weights, pairs.weight_N.contiguous())
    phi_ND = torch.cat(dist_functional.all_gather(pairs.phi_ND.contiguous()))
    psi_ND = torch.cat(dist_functional.all_gather(pairs.psi_ND.contiguous()))
    return Pairs(phi_ND, psi_ND, torch.cat(goals), torch.cat(weights))
