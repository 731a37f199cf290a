"""Runs the expert and says what it solves: `python -m sim.expert.check suite=libero_object tasks=0-9 inits=0-4`.

Options: suite, tasks and inits as numbers and ranges (0,2,5-7), seed (default 7), out=FILE.jsonl (one record an
episodes in it are not repeated), random=1 (inits are seeds of random scenes instead of LIBERO's stored states; always
so for robosuite), stop=1 (end at the first success; 0, the default: run until the expert has let go and left),
figures=FILE.json (planning against stepping in CPU seconds an episode, of all episodes in `out`).
An episode is solved when the simulator's predicate holds at its end, within the suite's limit of control steps.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from embodied.bench.figures import Figure, write_figures
from embodied.io import append_line, read_lines
from sim.expert.expert import Expert
from sim.make import make_env
from sim.tasks import ROBOSUITE

DEFAULTS = {
    "suite": "libero_object",
    "tasks": "0-9",
    "inits": "0-4",
    "seed": "7",
    "out": "",
    "random": "0",
    "stop": "0",
    "figures": "",
}


def numbers(text: str) -> list[int]:
    """ "0,2,5-7" -> [0, 2, 5, 6, 7]."""
    result: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        result += range(int(first), int(last or first) + 1)
    return result


def run_episode(env: Any, expert: Any, seed: int, init: int | None, stop: bool) -> dict[str, Any]:
    """One episode: steps to the first success and to the end, whether success held at the end, times in CPU seconds."""
    env.reset(seed=seed, options={} if init is None else {"init_state": init})
    expert.reset(env, seed)
    planning = stepping = 0.0
    first, steps = None, 0
    while steps < env.task.max_steps:
        start = time.process_time()
        actions = expert.act(env)
        planning += time.process_time() - start
        if expert.done:
            break
        start = time.process_time()
        steps += env.run_steps(actions, stop_at_success=False).steps
        stepping += time.process_time() - start
        if first is None and env.success():
            first = steps
            if stop:
                break
    return {
        "success": env.success(),
        "first": first,
        "steps": steps,
        "planning_s": round(planning, 3),
        "stepping_s": round(stepping, 3),
        "log": expert.log,
    }


def main(arguments: list[str]) -> int:
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in DEFAULTS:
            raise ValueError(f"options are {', '.join(DEFAULTS)}, got {argument!r}")
        settings[key] = value
    suite, out = settings["suite"], Path(settings["out"]) if settings["out"] else None
    drawn = settings["random"] == "1" or suite == ROBOSUITE
    records = [r for r in (read_lines(out) if out else []) if r["suite"] == suite and r["random"] == drawn]
    for task in numbers(settings["tasks"]):
        done = {r["init"] for r in records if r["task"] == task}
        todo = [i for i in numbers(settings["inits"]) if i not in done]
        env = make_env(suite, task) if todo else None
        for init in todo:
            seed, state = (init, None) if drawn else (int(settings["seed"]), init)
            result = run_episode(env, Expert(), seed, state, settings["stop"] == "1")
            records.append({"suite": suite, "task": task, "init": init, "random": drawn, **result})
            if out:
                append_line(out, records[-1])
            print(_line(records[-1]), flush=True)
        if env is not None:
            env.close()
    wanted = {(t, i) for t in numbers(settings["tasks"]) for i in numbers(settings["inits"])}
    print(table([r for r in records if (r["task"], r["init"]) in wanted]))
    if settings["figures"]:
        command = f"python -m sim.expert.check {' '.join(arguments)}"
        write_figures(Path(settings["figures"]), times(read_lines(out) if out else records), command)
    return 0


def times(records: list[dict[str, Any]]) -> list[Figure]:
    """planning.SUITE: mean CPU seconds of planning an episode, its baseline those of stepping the simulation."""
    groups = defaultdict(list)
    for record in records:
        groups[record["suite"]].append(record)
    result = []
    for suite, group in sorted(groups.items()):
        planning, stepping = (sum(r[key] for r in group) / len(group) for key in ("planning_s", "stepping_s"))
        note = f"CPU seconds an episode; stepping {stepping:.2f} s, planning over stepping {planning / stepping:.2f}"
        result.append(Figure(f"planning.{suite}", planning, "s", stepping, f"{note}; {len(group)} episodes"))
    return result


def _line(record: dict[str, Any]) -> str:
    outcome = "solved" if record["success"] else "FAILED"
    text = f"{record['suite']} {record['task']} init {record['init']}: {outcome} first {record['first']}"
    text += f" end {record['steps']} plan {record['planning_s']:.2f} s step {record['stepping_s']:.2f} s"
    return text if record["success"] else f"{text} {record['log']}"


def table(records: list[dict[str, Any]]) -> str:
    """Solved of tried, mean steps to the first success and to the end, planning over stepping time, by task."""
    groups = defaultdict(list)
    for record in records:
        groups[str(record["task"])].append(record)
        groups["all"].append(record)
    lines = ["task  solved  tried  first  steps  plan/step"]
    for name, group in sorted(groups.items(), key=lambda item: (item[0] == "all", item[0].zfill(3))):
        solved = [r for r in group if r["success"]]
        first = sum(r["first"] for r in solved) / max(len(solved), 1)
        steps = sum(r["steps"] for r in solved) / max(len(solved), 1)
        ratio = sum(r["planning_s"] for r in group) / max(sum(r["stepping_s"] for r in group), 1e-9)
        lines.append(f"{name:>4}  {len(solved):>6}  {len(group):>5}  {first:>5.0f}  {steps:>5.0f}  {ratio:>9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        print(f"check: {error}", file=sys.stderr)
        sys.exit(2)
