"""Collects demonstrations of a scripted expert and writes them as a LeRobotDataset v3.

    embodied collect env=libero_object tasks=[0,1] episodes=10 workers=2 out=data/object
    embodied collect env=robosuite tasks=[0] episodes=20 noise=0.06 size=128 out=data/lift
    embodied collect render_from=data/object size=256 out=data/object_256

env=NAME               the suite; tasks=[...] its tasks (all), episodes=N attempts of each, on scenes drawn from
seed=200000            seed + 1000 task + episode: never the stored initial states that evaluations use
noise=0.06 noisy=odd   execution noise of every second episode (every, none); the label is the intended action
goals=[{task:0,instruction:"...",goal:[[in,soup_1,basket_1]]}]   further goals in a task's scenes
phase=all              physics records episodes without rendering, render makes the data set of them, all does both
size=128 codec=av1     images; h264 encodes faster and is larger
keep_failures=true     puts failed episodes into the data set too (records always keep them, marked)
render_from=FOLDER     renders the records of another collection, at any size
workers=2              simulator processes
out=FOLDER             an existing one is resumed: finished episodes are not repeated

Exit status 1: some episodes could not be recorded or rendered (OUT/errors.jsonl says why); run it again to retry.
"""

from __future__ import annotations

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.collecting.config import CollectConfig

    registry.target("embodied.collecting.demonstrate.Demonstrator")
    registry.schema(None, "collect_schema", CollectConfig)


def run(arguments: list[str]) -> int:
    from embodied.collecting.collect import collect
    from embodied.collecting.physics import by_task
    from embodied.config import compose_config, to_dataclass

    done = collect(to_dataclass(compose_config("collect", arguments)))
    print("\n".join(by_task(done.lines)))
    if done.errors:
        print(f"{done.errors} episodes could not be finished: see {done.out / 'errors.jsonl'}; run again to retry")
    print(f"{len(done.lines)} records, data set of {done.episodes} episodes and {done.frames} frames in {done.out}")
    return 1 if done.errors else 0
