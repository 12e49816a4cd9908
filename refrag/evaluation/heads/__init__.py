"""Finds the attention heads by which a decoder chooses chunks, and measures how often they find the evidence."""
