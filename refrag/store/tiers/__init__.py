"""Tiers that keep the store's values: memory, disk, Redis."""
