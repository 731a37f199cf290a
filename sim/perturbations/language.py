"""Other words for a task: five rewordings by rule, and the words of another task of the suite."""

from __future__ import annotations

import re

from embodied.protocols import Task
from sim.tasks import tasks

# Verb phrases, each with its rewordings in turn; longer ones first.
PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pick up", ("grab", "take", "lift")),
    ("and place it", ("and set it down", "and put it", "and lay it")),
    ("and put it", ("and place it", "and set it down", "and lay it")),
    ("turn on", ("switch on", "start", "power on")),
    ("turn off", ("switch off", "shut down", "power off")),
    ("close", ("shut", "push shut", "fully close")),
    ("open", ("pull open", "open up", "fully open")),
    ("push", ("slide", "move", "shove")),
    ("stack", ("pile", "put", "set")),
    ("lift", ("pick up", "raise", "grab")),
    ("place", ("put", "set", "lay")),
    ("put", ("place", "set", "lay")),
)
FRAMES = ("{}", "please {}", "could you {}", "your task is to {}", "i want you to {}, nothing else")


def paraphrase(words: str, variant: int) -> str:
    """The variant-th (1..5) rewording of an instruction; always differs from it and from the other variants."""
    if not 1 <= variant <= len(FRAMES):
        raise ValueError(f"paraphrase should be 1..{len(FRAMES)}, got {variant}")
    changed = words
    for phrase, others in PHRASES:
        pattern = rf"\b{phrase}\b"
        if re.search(pattern, changed) and re.search(pattern, words):
            changed = re.sub(pattern, others[(variant - 1) % len(others)], changed)
    if variant == 1 and changed == words:
        return f"now {words}"
    return FRAMES[variant - 1].format(changed)


def swapped(task: Task, places: int) -> str:
    """The words of the task `places` further on in the suite whose words differ, cyclically."""
    listed = tasks(task.suite)
    others = [listed[(task.index + step) % len(listed)].language for step in range(1, len(listed))]
    others = [words for words in dict.fromkeys(others) if words != task.language]
    return others[(places - 1) % len(others)]
