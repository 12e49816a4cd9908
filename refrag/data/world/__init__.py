"""A small made-up world, new in every draw, whose facts can only come from its passages."""
