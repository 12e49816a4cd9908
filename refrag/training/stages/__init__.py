"""The stages of a recipe, each with its data and its loss."""
