"""Text and questions to train and measure with: made-up worlds, documents, windows, tasks."""
