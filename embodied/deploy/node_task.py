"""`embodied bench node_task`: the same episodes evaluated directly and through `embodied node` and `embodied robot-sim`
in two processes over DDS, compared in pairs.

Both sides write evaluation runs into `folder`, which `embodied compare` reads too; what is there already is not run
again. Ways through the node differ in time:

    exact   lockstep, inference takes no time, images whenever the policy looks: must equal the direct run bit for bit
    timed   lockstep at the contract's rate, cameras at a fifth of it, inference takes `latency_s` of simulated time
    real    the machine's own time, with whatever else runs on it
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from embodied.bench.figures import Figure
from embodied.evaluation.compare import compare_runs
from embodied.evaluation.records import Record, RunFolder
from embodied.evaluation.statistics import wilson
from embodied.paths import new_run_folder

END_TIMEOUT_S = 30.0


@dataclass
class Way:
    """image_every: control steps between two images. latency_s: simulated time of an inference (lockstep).

    synchronize: as `schedule.synchronize`.
    """

    name: str
    mode: str = "async"
    image_every: int = 4
    latency_s: float = 0.0
    lockstep: bool = True
    synchronize: bool = False


@dataclass
class NodeTaskBench:
    """Trial i of every task starts at stored state `first` + i with seed `seed` + `first` + i, as `evaluate` has it."""

    policy: str
    suite: str = "libero_object"
    deploy: str = "libero_sim"
    tasks: list[int] | None = None
    first: int = 10
    episodes: int = 2
    seed: int = 7
    control_hz: int = 20
    ways: list[dict[str, Any]] = field(default_factory=list)
    folder: str | None = None  # runs/bench/TIME

    def run(self, say: Callable[[str], None]) -> list[Figure]:
        folder = Path(self.folder) if self.folder else new_run_folder("bench")
        ways = [_way(values) for values in self.ways]
        say(f"direct: {folder / 'direct'}")
        tasks = self._direct(folder / "direct")
        records = RunFolder(folder / "direct").records()
        figures = [_success("node_task.direct", records, "no node, images when the policy looks")]
        for way in ways:
            say(f"{way.name}: {folder / way.name}")
            counts = self._through(folder, way, tasks, records)
            figures += self._figures(folder, way, records, counts)
        return figures

    def _direct(self, run: Path) -> list[int]:
        """Evaluates without a node, and says which tasks."""
        from embodied.config import compose_config, to_dataclass
        from embodied.evaluation.evaluate import evaluate

        chosen = [] if self.tasks is None else [f"tasks={self.tasks}"]
        config = to_dataclass(
            compose_config(
                "evaluate",
                [
                    f"env={self.suite}",
                    "policy=checkpoint",
                    f"policy.path={self.policy}",
                    f"episodes={self.episodes}",
                    f"first={self.first}",
                    f"seed={self.seed}",
                    f"run={run}",
                    *chosen,
                    *("workers=1", "batching=single", "videos=0", "report=false", "starts=stored"),
                ],
            )
        )
        summary = evaluate(config)
        return sorted({record.episode.task for record in summary.records})

    def _through(self, folder: Path, way: Way, tasks: list[int], wanted: Mapping[str, Record]) -> dict[str, int]:
        """Runs the episodes that are missing; counts of the robot, empty when none was."""
        done = RunFolder(folder / way.name).records()
        missing = [t for t in tasks if any(r.episode.task == t for key, r in wanted.items() if key not in done)]
        if not missing:
            return _counts(folder, way)
        domain = 1 + secrets.randbelow(229)
        node, robot = self._node(way, domain), self._robot(folder, way, missing, domain)
        logs = [folder / f"{way.name}.{name}.log" for name in ("node", "robot")]
        with _process(node, logs[0]), _process(robot, logs[1]) as playing:
            status = playing.wait()
        if status != 0:
            raise ValueError(f"robot-sim should end with status 0, got {status}: see {logs[1]}")
        return _counts(folder, way)

    def _node(self, way: Way, domain: int) -> list[str]:
        timed = ["lockstep=true", f"latency_s={way.latency_s}"] if way.lockstep else []
        return [
            "node",
            "policy=checkpoint",
            f"policy.path={self.policy}",
            f"deploy={self.deploy}",
            f"schedule.mode={way.mode}",
            f"schedule.synchronize={str(way.synchronize).lower()}",
            f"network.domain_id={domain}",
            *timed,
        ]

    def _robot(self, folder: Path, way: Way, tasks: list[int], domain: int) -> list[str]:
        return [
            "robot-sim",
            f"env={self.suite}",
            f"deploy={self.deploy}",
            f"tasks={tasks}".replace(" ", ""),
            f"run={folder / way.name}",
            f"out={folder / way.name}.robot.json",
            f"robot.episodes={self.episodes}",
            f"robot.seed={self.seed + self.first}",
            f"robot.first_init_state={self.first}",
            f"robot.image_every={way.image_every}",
            f"robot.lockstep={str(way.lockstep).lower()}",
            "robot.answer_timeout_s=900",  # a busy machine takes minutes to import what a policy needs
            f"network.domain_id={domain}",
        ]

    def _figures(self, folder: Path, way: Way, direct: Mapping[str, Record], counts: dict[str, int]) -> list[Figure]:
        records = RunFolder(folder / way.name).records()
        comparison = compare_runs(folder / "direct", folder / way.name)
        pairs, name = comparison.all.paired, f"node_task.{way.name}"
        equal = sum(direct[key].end == records[key].end for key in direct)
        hz = self.control_hz / way.image_every
        time = f"lockstep, inference takes {way.latency_s:g} s" if way.lockstep else "real time"
        mode = f"{way.mode}, synchronized" if way.synchronize else way.mode
        note = f"{mode}, {time}; control at {self.control_hz} Hz, cameras at {hz:.3g} Hz"
        steps = sum(record.steps for record in records.values())
        found = [
            _success(name, records, note),
            Figure(f"{name}.only_direct", pairs.only_a, "episodes", None, f"succeeded only directly, of {pairs.pairs}"),
            Figure(f"{name}.only_node", pairs.only_b, "episodes", None, f"only through the node, of {pairs.pairs}"),
            Figure(f"{name}.mcnemar_p", comparison.all.p, "", None, "exact McNemar test on the pairs"),
            Figure(f"{name}.equal_ends", equal / len(direct), "share", None, "last states equal bit for bit"),
        ]
        if not way.lockstep and counts:
            share = 100 * counts.get("missed", 0) / max(steps, 1)
            found.append(Figure(f"{name}.held_percent", share, "%", None, "control steps without a command: held"))
        return found


def _way(values: Mapping[str, Any]) -> Way:
    known = [f.name for f in fields(Way)]
    unknown = set(values) - set(known)
    if unknown or "name" not in values:
        raise ValueError(f"a way through the node should have name and some of {known[1:]}, got {sorted(values)}")
    return Way(**values)


def _success(name: str, records: Mapping[str, Record], note: str) -> Figure:
    good, count = sum(record.success for record in records.values()), len(records)
    interval = wilson(good, count)
    words = f"{good} of {count} episodes, 95% {interval.low:.3f} to {interval.high:.3f} (Wilson); {note}"
    return Figure(f"{name}.success", good / count, "share", None, words)


def _counts(folder: Path, way: Way) -> dict[str, int]:
    path = folder / f"{way.name}.robot.json"
    return json.loads(path.read_text())["counts"] if path.exists() else {}


@contextmanager
def _process(arguments: Sequence[str], log: Path):
    """A command of this project while it is needed; SIGTERM ends it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "embodied.cli", *arguments], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
