"""What a policy server answers, whatever carries it: observation dict -> actions, through the contract.

Keys are the contract's (`observation/image`, ...); `prompt` or the stream of feature `task` is the instruction. The
optional key `reset` (true) starts a new episode; openpi's own servers ignore it. Actions are finite and inside the
contract's absolute limits; all other limits belong to the loop that executes them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from embodied.deploy.contract import Contract, unit_factor
from embodied.deploy.contract_check import require_match
from embodied.deploy.convert import decode
from embodied.protocols import Episode, Policy

PROMPT = "prompt"
RESET = "reset"


class PolicyServer:
    """One policy for any number of clients; inferences run one at a time, each client has its own slot."""

    def __init__(self, policy: Policy, contract: Contract) -> None:
        self.findings = require_match(contract, policy.spec)
        self.policy, self.contract = policy, contract
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._slots = itertools.count()
        self._episodes = itertools.count()
        self._last_ms: dict[int, float] = {}

    def metadata(self) -> dict[str, Any]:
        """What is sent to a client on connecting. openpi's own keys differ by policy; ours say what is expected."""
        spec, contract = self.policy.spec, self.contract
        return {
            "policy": spec.name,
            "digest": spec.digest,
            "action_horizon": spec.chunk,
            "replan": spec.replan,
            "action_dim": spec.action_dim,
            "action_names": list(contract.action.names),
            "control_hz": contract.rate_hz,
            "keys": {s.key: {"feature": s.feature, "names": list(s.names), "size": s.size} for s in contract.streams},
            "contract": contract.name,
            "reset": True,
        }

    def connect(self) -> int:
        """A slot for a new client; its first observation starts an episode."""
        slot = next(self._slots)
        self.counts["clients"] += 1
        return slot

    def disconnect(self, slot: int) -> None:
        self._last_ms.pop(slot, None)

    def infer(self, slot: int, request: Any) -> dict[str, Any]:
        """{"actions": (H, D) float32, "server_timing": {...}}. ValueError: what was expected of the request."""
        began = time.monotonic()
        observation = self._observation(request)
        with self._lock:
            if slot not in self._last_ms or bool(request.get(RESET, False)):
                words = observation["task"][0]
                self.policy.reset([slot], [Episode("served", 0, next(self._episodes), instruction=words)])
            inferring = time.monotonic()
            actions = np.asarray(self.policy.act(observation, [slot]), np.float32)
        ended = time.monotonic()
        timing = {"infer_ms": 1e3 * (ended - inferring)}
        if slot in self._last_ms:
            timing["prev_total_ms"] = self._last_ms[slot]
        self._last_ms[slot] = 1e3 * (ended - began)
        self.counts["inferences"] += 1
        return {"actions": self._checked(actions), "server_timing": timing}

    def _observation(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, Mapping):
            raise ValueError(f"an observation should be a dict, got {type(request).__name__}")  # noqa: TRY004
        missing = [s.key for s in self.contract.streams if s.key not in request and s.feature != "task"]
        if missing:
            raise ValueError(
                f"an observation should hold {', '.join(missing)}, it has {sorted(map(str, request))[:30]}"
            )
        parts: dict[str, list[Any]] = {}
        for stream in self.contract.streams:
            if stream.key in request:
                parts.setdefault(stream.feature, []).append(decode(stream, request[stream.key]))
        observation: dict[str, Any] = {}
        for feature, values in parts.items():
            joined = values[0] if len(values) == 1 else np.concatenate(values)
            observation[feature] = [joined] if isinstance(joined, str) else np.array(joined[None])
        observation.setdefault("task", [str(request.get(PROMPT, self.contract.task))[:4096]])
        return observation

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        spec, limits = self.policy.spec, self.contract.limits
        expected = (1, spec.chunk, spec.action_dim)
        if actions.shape != expected or not np.isfinite(actions).all():
            self.counts["bad_actions"] += 1
            raise ValueError(f"policy {spec.name} should give finite actions {expected}, got {actions.shape}: not sent")
        low = np.array(limits.low or -np.inf, np.float32)
        high = np.array(limits.high or np.inf, np.float32)
        output = self.contract.action
        return np.clip(actions[0], low, high) * np.float32(unit_factor(output.feature_unit, output.unit))
