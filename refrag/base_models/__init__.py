"""Pretrained models that a checkpoint names instead of holding them, fetched once into a cache of the user's."""
