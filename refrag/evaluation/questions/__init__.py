"""Evaluation on question sets of real passages: one run, resumable, and its report."""
