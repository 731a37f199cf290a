"""`embodied bench ablation`: trains every arm with every seed, evaluates all on the same episodes, compares them.

An arm is a list of stages (words of `embodied train`), each going on from the one before. Runs are separate processes,
`jobs` at a time; what is finished is not done again, and what was interrupted resumes, so that a killed call is simply
repeated. Figures: the success of every arm, averaged over its seeds, and the paired differences of `embodied ablation`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from embodied.bench.figures import Figure
from embodied.checkpoint import list_steps
from embodied.evaluation.ablation import AblationConfig, Difference, ablation
from embodied.evaluation.results import group_key
from embodied.io import write_json

TAIL = 2000  # characters of a failed command's log that the error shows


class PolicyAblation:
    """See configs/bench/ablation.yaml. An existing `folder` is gone on with."""

    def __init__(
        self,
        arms: Mapping[str, Sequence[Sequence[str]]],
        evaluations: Mapping[str, Sequence[str]],
        folder: str = "runs/bench/ablation",
        seeds: Sequence[int] = (0, 1, 2),
        train: Sequence[str] = (),
        evaluate: Sequence[str] = (),
        jobs: int = 1,
    ) -> None:
        if len(arms) < 2 or not evaluations or not seeds or jobs < 1:
            raise ValueError(
                "an ablation needs two arms or more, an evaluation, a seed and a job, "
                f"got arms {sorted(arms)}, evaluations {sorted(evaluations)}, seeds {list(seeds)}, jobs {jobs}"
            )
        self.arms = {name: [list(stage) for stage in stages] for name, stages in arms.items()}
        self.evaluations = {name: list(words) for name, words in evaluations.items()}
        self.folder, self.seeds, self.jobs = Path(folder), list(seeds), jobs
        self.train, self.evaluate = list(train), list(evaluate)

    def run(self, say: Any) -> list[Figure]:
        for arm in self.arms:
            self._prepare(*self._stages(arm, self.seeds[0])[0], say)
        cases = [(arm, seed) for seed in self.seeds for arm in self.arms]  # all arms of a seed before the next seed
        with ThreadPoolExecutor(self.jobs) as pool:
            runs = list(pool.map(lambda case: self._case(case[0], case[1], say), cases))
        by_arm: dict[str, Any] = {arm: [] for arm in self.arms}
        for (arm, _), paths in zip(cases, runs, strict=True):
            by_arm[arm].append([str(path) for path in paths])
        return figures(ablation(AblationConfig(by_arm)))

    def _stages(self, arm: str, seed: int) -> list[tuple[list[str], Path]]:
        """Words and run folder of each stage of an arm, each from the one before."""
        found: list[tuple[list[str], Path]] = []
        for number, stage in enumerate(self.arms[arm]):
            run = self.folder / f"{arm}_{seed}" / f"stage{number}"
            begin = [f"stage.init={found[-1][1]}"] if found else []
            found.append(([*stage, *self.train, *begin, f"seed={seed}", f"run={run}"], run))
        return found

    def _prepare(self, words: list[str], run: Path, say: Callable[[str], None]) -> None:
        """One step, so that frame caches and features are there before several processes want to make them."""
        if not list_steps(run / "checkpoints"):
            say(f"{run.parent.name}: prepare")
            self._run(["train", *words, "stop_after=1"], run)

    def _case(self, arm: str, seed: int, say: Callable[[str], None]) -> list[Path]:
        """Trains one arm with one seed and evaluates it: the evaluation runs."""
        stages = self._stages(arm, seed)
        for words, run in stages:
            self._command("train", words, run, say)
        trained, found = stages[-1][1], []
        for name, words in self.evaluations.items():
            run = trained.with_name(name)
            policy = ["policy=checkpoint", f"policy.path={trained}"]
            self._command("evaluate", [*policy, *words, *self.evaluate, f"run={run}"], run, say)
            found.append(run)
        return found

    def _command(self, command: str, words: list[str], run: Path, say: Callable[[str], None]) -> None:
        """Runs `embodied COMMAND WORDS`, unless it is known to have ended well. RuntimeError with its log if not."""
        done = run.with_name(f"{run.name}.done.json")
        if done.is_file() and json.loads(done.read_text()) == words:
            return
        say(f"{run.parent.name}: {command} {run.name}")
        self._run([command, *words], run)
        write_json(done, words)

    def _run(self, arguments: list[str], run: Path) -> None:
        log = run.with_name(f"{run.name}.log")
        if status := run_logged(arguments, log):
            raise RuntimeError(
                f"embodied {arguments[0]} for {run} ended with status {status}; repeat the call to go on. "
                f"The end of {log}:\n{log.read_text(errors='replace')[-TAIL:]}"
            )


def run_logged(arguments: Sequence[str], log: Path) -> int:
    """Exit status of `embodied ARGUMENTS` in a process of its own, whose output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        command = [sys.executable, "-m", "embodied.cli", *arguments]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def figures(differences: Sequence[Difference]) -> list[Figure]:
    """`ablation.ARM.SUITE[.PERTURBATION]` of each arm, and the differences."""
    rates: dict[str, Figure] = {}
    for found in differences:
        sides = ((found.arm, found.rate, found.seeds[0]), (found.against, found.rate_against, found.seeds[1]))
        for arm, rate, seeds in sides:
            name = f"ablation.{arm}.{group_key(*found.group)}"
            rates[name] = Figure(name, rate, "share", None, f"{seeds} training seeds, {found.episodes} episodes each")
    return [*(rates[name] for name in sorted(rates)), *(found.figure() for found in differences)]
