"""How well a world model tells policies apart: the same policies, from the same starts, in the simulator and in it.

Each policy has two evaluation runs (`embodied evaluate`), one with the simulator's environment and one with
env=imagined; episodes pair by identity. Figures: Pearson's r, rank correlation and MMRV of the success rates, with
intervals over episodes; the same without the policies named in `without`. Two more runs, with env=judged (the
simulator at the world model's detail), say how often the imagined run's classifier is right: one judged by it, one by
the simulator. Both show the policy the same images, so that its actions are the same until one of them sees success.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embodied.bench.figures import Figure
from embodied.evaluation.records import Outcome, RunFolder
from embodied.evaluation.world_statistics import bootstrap_policies, mmrv, pearson, spearman

WIDTH, MARGIN = 360, 44


@dataclass(frozen=True)
class PolicyOutcomes:
    """Success (E,) of the episodes `keys`: in the simulator, imagined, and in the simulator at the world model's
    detail, as the classifier and as the simulator sees it."""

    name: str
    keys: tuple[str, ...]
    real: np.ndarray
    imagined: np.ndarray
    judged: np.ndarray | None = None
    coarse: np.ndarray | None = None

    @property
    def agreement(self) -> float:
        """Share of episodes that end alike."""
        return float((self.real == self.imagined).mean())

    def of(self, keys: Sequence[str]) -> PolicyOutcomes:
        """Of these episodes, which it should have, in their order."""
        place = {key: i for i, key in enumerate(self.keys)}
        chosen = [place[key] for key in keys]
        sides = (self.real, self.imagined, self.judged, self.coarse)
        return PolicyOutcomes(self.name, tuple(keys), *(side if side is None else side[chosen] for side in sides))  # type: ignore[arg-type]


def read_policy(name: str, runs: Sequence[Path]) -> PolicyOutcomes:
    """Pairs two or four runs. ValueError when they share no episode or were made by different policies."""
    sides = [RunFolder(path).records() for path in runs]
    digests = [{record.policy_digest for record in side.values()} for side in sides]
    listed = " and ".join(str(path) for path in runs)
    if any(digest != digests[0] for digest in digests):
        raise ValueError(f"{listed} should be runs of one policy: evaluate {name} in each again")
    keys = [
        key
        for key in sorted(set.intersection(*(set(side) for side in sides)))
        if all(side[key].outcome is not Outcome.ERROR for side in sides)
    ]
    if not keys:
        raise ValueError(f"{listed} share no finished episode: use the same suite, tasks and seed")
    return PolicyOutcomes(name, tuple(keys), *(np.array([float(side[key].success) for key in keys]) for side in sides))


def policy_figures(policies: Sequence[PolicyOutcomes], without: Sequence[str] = ()) -> list[Figure]:
    """policy_eval.pearson, .spearman, .mmrv, and the same with _learned without some policies, over the episodes that
    all of them finished. ValueError for fewer than three policies, names that are none of them, no common episode."""
    if len(policies) < 3:
        raise ValueError(f"telling policies apart needs at least three of them, got {len(policies)}")
    unknown = sorted(set(without) - {policy.name for policy in policies})
    if unknown:
        raise ValueError(f"without should name policies of {[policy.name for policy in policies]}, got {unknown[0]!r}")
    keys = sorted(set.intersection(*(set(policy.keys) for policy in policies)))
    if not keys:
        raise ValueError("the policies share no finished episode: evaluate them on the same tasks and initial states")
    policies = [policy.of(keys) for policy in policies]
    real, seen = (np.stack([getattr(policy, side) for policy in policies]) for side in ("real", "imagined"))
    note = f"{len(policies)} policies, {len(keys)} episodes each"
    found = _figures(real, seen, "", note)
    kept = [i for i, policy in enumerate(policies) if policy.name not in without]
    if 3 <= len(kept) < len(policies):
        found += _figures(real[kept], seen[kept], "_learned", f"without {', '.join(without)}")
    agreement = float(np.mean([policy.agreement for policy in policies]))
    found.append(Figure("policy_eval.agreement", agreement, "", None, "episodes that end alike"))
    return [*found, *judge_figures(policies)]


def judge_figures(policies: Sequence[PolicyOutcomes]) -> list[Figure]:
    """How often the success classifier is right in the simulator at the world model's detail, and how often policies
    succeed there; of those that were run so."""
    controls = [p for p in policies if p.judged is not None and p.coarse is not None]
    if not controls:
        return []
    full, judged, real = (
        np.concatenate([getattr(policy, side) for policy in controls]) > 0 for side in ("real", "judged", "coarse")
    )
    note = f"{len(real)} episodes"
    found = [
        Figure("policy_eval.judge.agreement", float((real == judged).mean()), "", None, note),
        Figure(
            "policy_eval.coarse.success", float(real.mean()), "share", float(full.mean()), f"{note}; baseline: in full"
        ),
    ]
    for label, kind, wrong in (("missed", real, ~judged), ("false_success", ~real, judged)):
        if kind.any():
            note = f"of {int(kind.sum())} {'successes' if label == 'missed' else 'failures'}"
            found.append(Figure(f"policy_eval.judge.{label}", float(wrong[kind].mean()), "share", None, note))
    return found


def _figures(real: np.ndarray, seen: np.ndarray, suffix: str, note: str) -> list[Figure]:
    rates = real.mean(1).tolist(), seen.mean(1).tolist()
    found = []
    for name, function in (("pearson", pearson), ("spearman", spearman), ("mmrv", mmrv)):
        value = function(*rates)
        if value != value:
            raise ValueError(f"{name} needs success rates that differ between policies, got {rates}")
        interval = bootstrap_policies(real, seen, name)
        text = f"{note}; 95% interval {interval.low:.2f} to {interval.high:.2f}"
        found.append(Figure(f"policy_eval.{name}{suffix}", value, "", None, text))
    return found


def scatter(policies: Sequence[PolicyOutcomes]) -> str:
    """Success rates as SVG: simulator across, world model up."""
    inner, dots = WIDTH - 2 * MARGIN, []
    for policy in policies:
        x, y = MARGIN + inner * policy.real.mean(), WIDTH - MARGIN - inner * policy.imagined.mean()
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#1f5fa8" fill-opacity="0.7"><title>'
            f"{html.escape(policy.name)}: {policy.real.mean():.2f}, {policy.imagined.mean():.2f}</title></circle>"
            f'<text x="{x + 7:.1f}" y="{y - 6:.1f}" font-size="10">{html.escape(policy.name)}</text>'
        )
    low, high = MARGIN, WIDTH - MARGIN
    return (
        f'<svg width="{WIDTH}" height="{WIDTH}" role="img"><rect x="{low}" y="{low}" width="{inner}" height="{inner}" '
        f'fill="none" stroke="#ccc"/><line x1="{low}" y1="{high}" x2="{high}" y2="{low}" stroke="#ccc"/>{"".join(dots)}'
        f'<text x="{WIDTH / 2}" y="{WIDTH - 12}" font-size="12" text-anchor="middle">success in the simulator</text>'
        f'<text x="14" y="{WIDTH / 2}" font-size="12" text-anchor="middle" '
        f'transform="rotate(-90 14 {WIDTH / 2})">success in the world model</text></svg>'
    )


def evaluate_policies(runs: Mapping[str, Sequence[str]], without: Sequence[str] = ()) -> tuple[list[Figure], str]:
    """name -> (simulator's run, imagined run[, judged run, the same without a classifier]). Figures, and the plot."""
    wrong = [name for name, paths in runs.items() if len(paths) not in (2, 4)]
    if wrong:
        raise ValueError(
            "policies should map a name to two runs, [simulator, imagined], or four, [..., env=judged with its "
            f"classifier, env=judged without], {wrong[0]} does not"
        )
    policies = [read_policy(name, [Path(path) for path in paths]) for name, paths in runs.items()]
    return policy_figures(policies, without), scatter(policies)
