"""Checks a contract against the policy's own metadata, before the first observation, and names every mismatch.

A policy may say more about itself in `PolicySpec.extra`: `state_names`, `state_dim`, `action_names`, `control_hz`.
What it does not say is taken from the item format where it uses that format's keys, and is reported as unchecked
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from embodied.deploy.contract import Contract
from embodied.protocols import PolicySpec
from embodied.schema import ACTION_NAMES, STATE, STATE_NAMES


@dataclass
class Findings:
    """`mismatches` keep the node from starting; `unchecked` is what the policy's metadata leaves open."""

    mismatches: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_policy(contract: Contract, spec: PolicySpec, replan: int | None = None) -> Findings:
    """Compares streams, sizes, orders, horizon and rate. `replan`: actions of a chunk executed, when overridden."""
    findings = Findings()
    _check_images(contract, spec, findings)
    _check_state(contract, spec, findings)
    _check_action(contract, spec, findings)
    _check_timing(contract, spec, spec.replan if replan is None else replan, findings)
    return findings


def require_match(contract: Contract, spec: PolicySpec, replan: int | None = None) -> Findings:
    """`check_policy`, raising ValueError with all mismatches at once."""
    findings = check_policy(contract, spec, replan)
    if findings.mismatches:
        listed = "\n  ".join(findings.mismatches)
        raise ValueError(
            f"contract {contract.name!r} and policy {spec.name!r} disagree in {len(findings.mismatches)} points:"
            f"\n  {listed}\ncorrect the contract, or choose the policy that was trained for this robot"
        )
    return findings


def _check_images(contract: Contract, spec: PolicySpec, findings: Findings) -> None:
    for key in spec.image_keys:
        streams = contract.of(key)
        if len(streams) != 1:
            count = "no stream" if not streams else f"{len(streams)} streams"
            findings.mismatches.append(f"{key}: the policy reads it, the contract has {count} for it")
            continue
        size = streams[0].size
        if size == 0:
            findings.unchecked.append(
                f"{key}: the contract leaves the image size open, the policy reads {spec.image_size}"
            )
        elif size != spec.image_size:
            findings.mismatches.append(f"{key}: size is {size} in the contract, the policy reads {spec.image_size}")


def _check_state(contract: Contract, spec: PolicySpec, findings: Findings) -> None:
    key = spec.state_key
    wanted: Sequence[str] | None = spec.extra.get("state_names")
    if wanted is None and key == STATE and "state_dim" not in spec.extra:
        wanted = STATE_NAMES
    dimension = spec.extra.get("state_dim", len(wanted) if wanted is not None else None)
    if not key or dimension == 0:
        return
    if not contract.of(key):
        findings.mismatches.append(f"{key}: the policy reads it, the contract has no stream for it")
        return
    names = contract.names(key)
    if dimension is not None and len(names) != dimension:
        findings.mismatches.append(f"{key}: {len(names)} elements in the contract, the policy reads {dimension}")
    _compare_order(key, names, wanted, findings)


def _check_action(contract: Contract, spec: PolicySpec, findings: Findings) -> None:
    names = contract.action.names
    if len(names) != spec.action_dim:
        findings.mismatches.append(f"action: {len(names)} elements in the contract, the policy gives {spec.action_dim}")
        return
    wanted: Sequence[str] | None = spec.extra.get("action_names")
    if wanted is None and spec.action_dim == len(ACTION_NAMES) and spec.state_key == STATE:
        wanted = ACTION_NAMES
    _compare_order("action", names, wanted, findings)


def _compare_order(key: str, names: Sequence[str], wanted: Sequence[str] | None, findings: Findings) -> None:
    if wanted is None:
        findings.unchecked.append(f"{key}: the policy does not name its elements, so their order is not checked")
        return
    if len(names) == len(wanted) and list(names) != list(wanted):
        index = next(i for i, (ours, theirs) in enumerate(zip(names, wanted, strict=True)) if ours != theirs)
        findings.mismatches.append(
            f"{key}: element {index} is {names[index]!r} in the contract, {wanted[index]!r} in the policy "
            f"(order there: {', '.join(wanted)})"
        )


def _check_timing(contract: Contract, spec: PolicySpec, replan: int, findings: Findings) -> None:
    rate = spec.extra.get("control_hz")
    if rate is None:
        findings.unchecked.append(
            f"rate: the policy does not say its control rate, the contract runs {contract.rate_hz} Hz"
        )
    elif abs(float(rate) - contract.rate_hz) > 1e-6:
        findings.mismatches.append(f"rate: {contract.rate_hz} Hz in the contract, the policy was made for {rate} Hz")
    if not 1 <= replan <= spec.chunk:
        findings.mismatches.append(
            f"horizon: {replan} actions between two inferences, the policy gives chunks of {spec.chunk}"
        )
