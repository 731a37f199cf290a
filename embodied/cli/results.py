"""Publishes measured figures and writes the tables of README and docs from them.

    embodied results
    embodied results check=true
    embodied results name=bc runs=[runs/evaluate/A,runs/evaluate/B] training=[runs/train/bc]

Without name=: rewrites every block `<!-- results NAME [figure ...] --> ... <!-- /results -->` from
docs/results/NAME.json. check=true writes nothing; exit status 1 when a table is not what its file says.
With name=: first writes docs/results/NAME.json from evaluation runs (success.SUITE with intervals), training runs and
figures files (extra=).
"""

from __future__ import annotations

import shlex

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.evaluation.results import ResultsConfig

    registry.schema(None, "results_schema", ResultsConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.evaluation.results import publish, write_tables

    config = to_dataclass(compose_config("results", arguments))
    if config.name or config.runs or config.extra:
        print(publish(config, shlex.join(["embodied", "results", *arguments])))
    changed = write_tables(config.documents, config.check)
    for path in changed:
        print(f"{path}: {'not what its figures say' if config.check else 'tables written'}")
    return int(config.check and bool(changed))
