"""What `embodied collect` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from embodied.data.video_writer import VideoCodec


class Phase(Enum):
    all = "all"
    physics = "physics"
    render = "render"


class Noisy(Enum):
    """Which episodes of a task get execution noise."""

    odd = "odd"
    every = "every"
    none = "none"


@dataclass
class Goal:
    """Another goal in a task's scene: predicates as the simulator names them, and the words for it."""

    task: int = MISSING
    instruction: str = MISSING
    goal: list[list[str]] = MISSING


@dataclass
class CollectConfig:
    """`task_list`: registered function, suite -> its tasks. `tasks` empty: all of the suite. `episodes`: attempts per
    task and goal, seeds seed + 1000 task + 0, 1, 2, ...

    `goals`, and of what `goal_list` (a registered function) lists for a task the numbers in `other_goals`, are recorded
    beside the tasks' own goals, or in their place when `own_goals` is false.

    `learner`: a policy that drives the first `lead` steps of every episode, drawn between the two numbers; then the
    expert takes over from wherever that has led, and only its steps are demonstrations. They show what to do after the
    learner's own mistakes (DAgger, Ross et al. 2011; by intervention, Kelly et al. 2019, here at a drawn moment).

    `noise`: standard deviation of the execution noise on translations (a third of it on rotations) in units of the
    action; `noise_memory`: its correlation from one step to the next. Independent noise averages out within a few
    steps; correlated noise leads the arm astray as a policy's own errors do, so that demonstrations show the way back
    (DART, Laskey et al. 2017). `noise_free`: no noise while the expert is `touching` something or about
    to, so that it can be strong: a hand that goes back to its way from a centimetre off, and still grasps.

    `attempts`: how often an episode whose worker crashed or hung is tried. `tolerance`: how far a replay may be from
    the recorded states; 0 asks for equality of every bit.

    `image_every`: cameras are rendered before every so many-th action only, and the last picture stands in between; the
    column `image_age` says how many steps old a row's pictures are. Rendering is nearly all of a collection's cost, and
    neighbouring frames are much alike: more episodes for the same time.
    """

    env: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] | None = None
    lead: list[int] = field(default_factory=lambda: [20, 120])
    task_list: str = "sim.tasks.tasks"
    tasks: list[int] = field(default_factory=list)
    episodes: int = 10
    seed: int = 200_000
    noise: float = 0.06
    noise_memory: float = 0.0
    noise_free: bool = False
    noisy: Noisy = Noisy.odd
    goals: list[Goal] = field(default_factory=list)
    goal_list: str = "sim.goals.other_goals"
    other_goals: list[int] = field(default_factory=list)
    own_goals: bool = True
    max_steps: int | None = None
    workers: int = 2
    phase: Phase = Phase.all
    render_from: str | None = None
    keep_failures: bool = False
    size: int = 128
    image_every: int = 1
    codec: VideoCodec = VideoCodec.av1
    crf: int | None = None
    tolerance: float = 0.0
    attempts: int = 2
    timeout: float = 900.0
    out: str = MISSING
