"""Contracts: what is refused and how it is said; the check against a policy's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from embodied.deploy.contract import Align, Contract, OnTrouble, contract_from, load_contract, unit_factor
from embodied.deploy.contract_check import check_policy, require_match
from embodied.protocols import PolicySpec
from embodied.schema import ACTION_NAMES, IMAGE, STATE, STATE_NAMES


def arm(**changes: Any) -> dict[str, Any]:
    """A contract of one camera and two joints."""
    image = {"feature": IMAGE, "topic": "/camera", "type": "sensor_msgs/msg/Image", "size": 8}
    joints = {"feature": STATE, "topic": "/joints", "type": "sensor_msgs/msg/JointState", "names": ["a", "b"]}
    action = {"topic": "/command", "type": "std_msgs/msg/Float64MultiArray", "names": ["a", "b"]}
    return {"name": "arm", "rate_hz": 10, "streams": [image, joints], "action": action, **changes}


def spec(**changes: Any) -> PolicySpec:
    extra = {"state_names": ["a", "b"], "action_names": ["a", "b"], "control_hz": 10, **changes.pop("extra", {})}
    values = {"name": "p", "digest": "0", "chunk": 8, "replan": 4, "action_dim": 2, "image_keys": (IMAGE,)}
    return PolicySpec(**{**values, "image_size": 8, "extra": extra, **changes})


def test_file_to_dataclass(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    values = arm(on_trouble="stop")
    values["streams"][1]["align"] = "asof"
    path.write_text(yaml.safe_dump(values))
    contract = load_contract(path)
    assert isinstance(contract, Contract)
    assert contract.on_trouble is OnTrouble.stop
    assert contract.streams[1].align is Align.asof
    assert contract.period_s == 0.1
    assert contract.names(STATE) == ["a", "b"]


def test_unknown_key_names_the_nearest() -> None:
    values = arm()
    values["streams"][0]["topc"] = "/x"
    with pytest.raises(ValueError, match="did you mean 'topic'"):
        contract_from(values)


def test_missing_value_and_wrong_enum_are_named() -> None:
    with pytest.raises(ValueError, match=r"needs a value for action\.names"):
        contract_from(arm(action={"topic": "/c", "type": "array"}))
    with pytest.raises(ValueError, match="hold"):
        contract_from(arm(on_trouble="panic"))


def test_every_problem_is_named() -> None:
    values = arm(rate_hz=0, limits={"low": [0.0], "high": [1.0, 1.0], "max_step": [0.0, 1.0]})
    values["streams"][0]["type"] = "sensor_msgs/msg/Imge"
    values["streams"][1].update(names=[], unit="deg", feature_unit="m")
    values["action"]["gripper"] = ["c"]
    with pytest.raises(ValueError, match="problems") as caught:
        contract_from(values)
    text = str(caught.value)
    for part in ("rate_hz", "did you mean 'sensor_msgs/msg/Image'", "list the names", "do not convert", "'c'"):
        assert part in text
    assert "limits.low should have 2" in text
    assert "limits.max_step should be above 0" in text


def test_units() -> None:
    assert unit_factor("deg", "rad") == pytest.approx(3.14159265 / 180)
    assert unit_factor("mm", "m") == 0.001
    assert unit_factor("", "rad") == 1.0
    with pytest.raises(ValueError, match="should be one of"):
        unit_factor("furlong", "m")


def test_matching_policy_has_no_findings() -> None:
    findings = require_match(contract_from(arm()), spec())
    assert findings.mismatches == []
    assert findings.unchecked == []


def test_every_mismatch_is_named_before_the_first_observation() -> None:
    other = spec(
        image_keys=(IMAGE, "observation.images.wrist"),
        image_size=16,
        chunk=2,
        extra={"state_names": ["b", "a"], "action_names": ["a", "c"], "control_hz": 20},
    )
    with pytest.raises(ValueError, match="disagree in 6 points") as caught:
        require_match(contract_from(arm()), other)
    text = str(caught.value)
    assert "observation.images.wrist: the policy reads it, the contract has no stream" in text
    assert "size is 8 in the contract, the policy reads 16" in text
    assert "element 0 is 'a' in the contract, 'b' in the policy" in text
    assert "element 1 is 'b' in the contract, 'c' in the policy" in text
    assert "10.0 Hz in the contract, the policy was made for 20 Hz" in text
    assert "chunks of 2" in text


def test_item_format_is_the_default() -> None:
    """A policy of the item format need not name its elements; two joints do not fit it."""
    plain = PolicySpec(name="p", digest="0", chunk=8, replan=4)
    findings = check_policy(contract_from(arm()), plain)
    assert findings.mismatches == [
        f"{STATE}: 2 elements in the contract, the policy reads 8",
        "action: 2 elements in the contract, the policy gives 7",
    ]
    values = arm()
    values["streams"][1]["names"] = list(STATE_NAMES)
    values["action"]["names"] = [*ACTION_NAMES[:5], "gripper", "drz"]
    (mismatch,) = check_policy(contract_from(values), plain).mismatches
    assert mismatch.startswith("action: element 5 is 'gripper' in the contract, 'drz' in the policy")
