"""The dataset layer: LeRobotDataset v3 reading and writing, importers, frame cache, windows, statistics."""
