"""Measures a checkpoint on held-out questions and prose."""
