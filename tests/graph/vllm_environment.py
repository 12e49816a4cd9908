"""Finds the environment of the decoder `vllm`, if `make vllm` has made it, and has a repository use it."""

from pathlib import Path

import pytest

from refrag.decoders.install import server_environment
from refrag.errors import SetupError
from refrag.serving.choose_decoder import choose_decoder

FOLDER = Path(__file__).parents[2] / "build" / "decoders" / "vllm"
# Its engine's processes import torch, and load the decoder, before the server is ready.
READY_SECONDS = 600.0


def why_not() -> str | None:
    """Return why the environment cannot be used, or None."""
    try:
        server_environment(FOLDER)
    except SetupError as error:
        return f"{error} (here: make vllm)"
    return None


needs_vllm = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def use_vllm(repository: Path, **values: str) -> None:
    defaults = {"kv_cache_mib": "1024", "max_active": "32", "num_threads": "2"}
    choose_decoder(repository, "vllm", {**defaults, **values}, server_environment(FOLDER))
