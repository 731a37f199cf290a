"""What the contrastive loss learns, checked where the answer is known: a small grid world with an exact solution.

A random walk on a grid ends at one of a few goal cells; the goal it reaches is its instruction. The discounted
probability that a walk through (s, a) reaches goal l, Q(l | s, a) = E[gamma^(T - t) 1{reaches l} | s, a], solves a
linear system. Trained on sampled walks, the scaled inner product should be log Q(l | s, a) + C(l).

Shapes: S cells, A = 4 moves, G goals, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import one_hot

from policies.prts.contrastive import CRLConfig, CRLHeads, Pairs, contrastive_losses

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class GridWorld:
    """A `size` x `size` grid. A move fails with probability `slip` (the walk stays); goals end the walk."""

    size: int = 5
    goals: tuple[int, ...] = (0, 4, 22)
    slip: float = 0.1

    @property
    def cells(self) -> int:
        return self.size**2

    def transitions(self) -> np.ndarray:
        """(S, A, S) probabilities."""
        table = np.zeros((self.cells, len(MOVES), self.cells))
        for cell in range(self.cells):
            for a, (down, right) in enumerate(MOVES):
                row = min(max(cell // self.size + down, 0), self.size - 1)
                column = min(max(cell % self.size + right, 0), self.size - 1)
                table[cell, a, row * self.size + column] += 1 - self.slip
                table[cell, a, cell] += self.slip
        return table

    def occupancy(self, gamma: float) -> np.ndarray:
        """(S, A, G) Q(l | s, a) of the uniform random walk; rows of goal cells mean nothing."""
        step_SAS = self.transitions()
        inner = [cell for cell in range(self.cells) if cell not in self.goals]
        walk_SS = step_SAS.mean(1)
        arrive_SG = gamma * walk_SS[np.ix_(inner, self.goals)]
        value_SG = np.zeros((self.cells, len(self.goals)))
        value_SG[inner] = np.linalg.solve(np.eye(len(inner)) - gamma * walk_SS[np.ix_(inner, inner)], arrive_SG)
        value_SG[list(self.goals)] = np.eye(len(self.goals))
        return gamma * step_SAS @ value_SG

    def walks(self, count: int, gamma: float, seed: int, limit: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of `count` random walks: cell * 4 + move (N,), index of the goal reached (N,), gamma^(T - t) (N,)."""
        generator = np.random.default_rng(seed)
        inner = np.array([cell for cell in range(self.cells) if cell not in self.goals])
        cumulative = self.transitions().cumsum(-1)
        cell, path = generator.choice(inner, count), []
        end, goal = np.full(count, limit + 1), np.zeros(count, np.int64)
        for t in range(limit):
            move = generator.integers(len(MOVES), size=count)
            path.append(cell * len(MOVES) + move)
            following = (generator.random(count)[:, None] > cumulative[cell, move]).sum(1)
            cell = np.where(end <= t, cell, following)
            for g, where in enumerate(self.goals):
                arrived = (cell == where) & (end > limit)
                end[arrived], goal[arrived] = t + 1, g
        pairs_NT, time_T = np.stack(path, 1), np.arange(limit)
        kept_NT = (time_T < end[:, None]) & (end[:, None] <= limit)
        left_NT = end[:, None] - time_T
        goal_NT = np.broadcast_to(goal[:, None], kept_NT.shape)
        return pairs_NT[kept_NT], goal_NT[kept_NT], gamma ** left_NT[kept_NT]


@dataclass(frozen=True)
class TabularResult:
    """Learned against exact, (pairs, goals), the constant C(l) taken out of each goal (its mean over pairs)."""

    learned: np.ndarray
    exact: np.ndarray

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(self.learned.ravel(), self.exact.ravel())[0, 1])

    @property
    def error(self) -> float:
        """Root mean square difference, in nats."""
        return float(np.sqrt(np.mean((self.learned - self.exact) ** 2)))

    @property
    def slope(self) -> float:
        """Least-squares slope of learned against exact; 1 is right."""
        return float((self.learned * self.exact).sum() / (self.exact**2).sum())


def learn_occupancy(
    world: GridWorld, gamma: float = 0.9, walks: int = 4000, steps: int = 1500, batch: int = 1024, seed: int = 0
) -> TabularResult:
    """Trains the heads on one-hot (s, a) and one-hot goals, and sets the result against the exact solution."""
    torch.manual_seed(seed)
    pair_N, goal_N, weight_N = (torch.from_numpy(x) for x in world.walks(walks, gamma, seed))
    states, goals = world.cells * len(MOVES), len(world.goals)
    heads = CRLHeads(states, CRLConfig(width=64, layers=2, features=32, last_layer_init=1e-2))
    heads.psi = type(heads.psi)(goals, CRLConfig(width=64, layers=2, features=32, last_layer_init=1e-2))
    optimiser = torch.optim.Adam(heads.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(pair_N), (batch,), generator=generator)
        phi = heads.phi(one_hot(pair_N[pick], states).float())
        psi = heads.psi(one_hot(goal_N[pick], goals).float())
        loss = sum(contrastive_losses(Pairs(phi, psi, goal_N[pick], weight_N[pick].float()), heads).values())
        optimiser.zero_grad()
        torch.as_tensor(loss).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        learned = heads.scale() * heads.phi(torch.eye(states)) @ heads.psi(torch.eye(goals)).T
    inner = np.array([cell not in world.goals for cell in range(world.cells)]).repeat(len(MOVES))
    exact = np.log(world.occupancy(gamma).reshape(states, goals)[inner])
    found = learned.numpy()[inner].astype(np.float64)
    return TabularResult(found - found.mean(0), exact - exact.mean(0))
