"""LeRobot's policies as policies of the stack. `lerobot_policy.py` is the adapter; nothing here imports lerobot."""
