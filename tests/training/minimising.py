"""Trains an objective on one batch, for tests that it learns at all."""

import torch


def minimise(objective, batch, num_steps, learning_rate):
    """Return the figures of each step."""
    optimizer = torch.optim.Adam([one for one in objective.parameters() if one.requires_grad], lr=learning_rate)
    figures = []
    for _ in range(num_steps):
        outcome = objective(batch)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        figures.append(outcome.figures)
    return figures
