"""Reads and writes a trained policy's file, without the imports that a decoder needs: a server's policy starts soon."""

from pathlib import Path

import torch

from refrag.config import LEARNED_POLICY, RefragConfig
from refrag.errors import CheckpointError
from refrag.model.policy import ExpansionPolicy
from refrag.model.weights import fill, load_metadata, load_weights, matrix_shape, save_weights

POLICY = "policy.safetensors"
QUESTION_AWARE = "question_aware"


def load_policy(directory: Path, config: RefragConfig) -> ExpansionPolicy | None:
    """Return the network of the learned policy, or None if there is none and another policy is the default."""
    path = directory / POLICY
    if not path.is_file() and config.policy != LEARNED_POLICY:
        return None
    return load_policy_file(path, config.policy_num_heads, config.question_aware)


def load_policy_file(path: Path, num_heads: int, question_aware: bool) -> ExpansionPolicy:
    """Load a policy network from a file.

    Raises CheckpointError if it differs in `question_aware`, which the shapes of its weights do not tell.
    """
    weights, kind = load_weights(path), load_metadata(path).get(QUESTION_AWARE)
    if kind not in (None, str(question_aware)):
        raise CheckpointError(
            f"{path} has {QUESTION_AWARE} {kind}, where {question_aware} is needed; name a policy trained with that"
        )
    width, encoder_width = matrix_shape(weights, "question_in.weight", path)
    return fill(ExpansionPolicy(encoder_width, width, num_heads, question_aware), weights, path)


def save_policy(policy: ExpansionPolicy, path: Path, dtype: torch.dtype) -> None:
    save_weights(policy, path, dtype, {QUESTION_AWARE: str(policy.question_aware)})
