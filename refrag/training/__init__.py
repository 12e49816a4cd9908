"""Trains a checkpoint: presets, stages, and one loop from a CPU to a cluster."""
