"""Measures what REFRAG costs, one tool for each question, and generates parts of the documentation."""
