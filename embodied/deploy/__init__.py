"""Deployment: contract, control loop, chunk scheduling, safety, watchdog, record and replay, transports.

Only modules under `transports` import a robot's libraries (cyclonedds, rosbags, websockets, rospy).
"""
