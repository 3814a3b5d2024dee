"""Calibration: tables fitted to a network from a handful of trajectories."""
