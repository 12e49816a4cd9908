"""Makes a checkpoint whole that names base models, so that what reads it needs no cache of them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from refrag.config import RefragConfig
from refrag.model.checkpoint import load_checkpoint


@contextmanager
def whole_checkpoint(directory: Path) -> Iterator[Path]:
    """Yield `directory` if it names no base models, else a whole copy that lasts as long as the context."""
    config = RefragConfig.load(directory)
    if config.decoder_base is None and config.encoder_base is None:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="refrag-whole-") as scratch:
        save_whole_copy(directory, Path(scratch, "checkpoint"))
        yield Path(scratch, "checkpoint")


def save_whole_copy(directory: Path, target: Path) -> None:
    """Write a checkpoint with its adapters merged and its base models inside, into the new folder `target`.

    The decoder is rounded to float16, in which base models are stored; all else, which is small, stays float32.
    """
    checkpoint = load_checkpoint(directory)
    if checkpoint.heads is not None:
        checkpoint.heads.check(checkpoint.decoder)
    checkpoint.without_bases().save(target, decoder_dtype=torch.float16)
