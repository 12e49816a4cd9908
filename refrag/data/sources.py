"""Where text comes from."""

from typing import Literal

from pydantic import PositiveFloat

from refrag.settings import Settings


class TextSource(Settings):
    """Documents: the made-up world, the standard library's documentation, files, or a Hugging Face data set."""

    kind: Literal["world", "stdlib", "text", "jsonl", "dataset"]
    path: str | None = None
    text_field: str = "text"
    split: str = "train"
    weight: PositiveFloat = 1.0
