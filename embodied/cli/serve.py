"""Serves a policy over openpi's websocket protocol.

    embodied serve policy=checkpoint policy.path=FOLDER deploy=libero_openpi
    embodied serve policy=random port=8001 contract=my_robot.yaml

deploy=NAME / contract=FILE   which keys become which features; checked against the policy before anything is served
host=127.0.0.1 port=8000      loopback unless told otherwise; GET /healthz answers OK
max_message_bytes=N max_clients=N

openpi's client, runtime and examples work with it as they are. EMBODIED_API_KEY in the environment: clients must send
it (`Authorization: Api-Key ...`). Inference runs off the event loop; SIGTERM ends it cleanly.
"""

from __future__ import annotations

import os
import sys

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.deploy.config import ServeConfig

    registry.schema(None, "serve_schema", ServeConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import api_key, contract_of, stop_on_signals, use_threads
    from embodied.deploy.policy_server import PolicyServer
    from embodied.deploy.transports.openpi_server import OpenpiServer
    from embodied.registry import build

    config = to_dataclass(compose_config("serve", arguments))
    use_threads(config.torch_threads)
    contract = contract_of(config.deploy, config.contract)
    if config.policy.get("runs_in") == "simulator":
        raise ValueError("policy=expert reads the simulator's state, a client has none: choose another policy")
    server = PolicyServer(build(config.policy), contract)
    for point in server.findings.unchecked:
        print(f"unchecked: {point}")
    stop = stop_on_signals()
    listening = OpenpiServer(server, config.host, config.port, api_key(), config.max_message_bytes, config.max_clients)
    listening.start()
    print(f"serving {server.policy.spec.name} at ws://{listening.host}:{listening.port}", flush=True)
    stop.wait()
    listening.stop()
    print(f"served {server.counts['inferences']} inferences, {server.counts['errors']} errors", flush=True)
    sys.stdout.flush()
    os._exit(0)  # an inference under way has no claim on the process
