"""Reads the raised budget of a request whose policy may not be sure enough, as preprocessing has computed it."""

from refrag.errors import InvalidRequest
from refrag.request import Fallback
from refrag.serving.tensors import Tensors, scalar


def read_fallback(inputs: Tensors, name: str, raised: int, budget: int, num_chunks: int) -> Fallback | None:
    """Return the fallback, or None if the request has none, which a raised budget of 0 says.

    name: of the tensor with the raised budget. budget: the one that is raised. Raises InvalidRequest for values out of
    range.
    """
    if raised == 0:
        return None
    if not max(1, budget) <= raised <= num_chunks:
        raise InvalidRequest(
            f"{name} is {raised}; allowed is the budget, {budget}, to {num_chunks}, every chunk, or 0 for none"
        )
    return Fallback(scalar(inputs, "min_confidence") or 0.0, raised)
