"""Evaluation of a checkpoint on held-out questions and prose."""
