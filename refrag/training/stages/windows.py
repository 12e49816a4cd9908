"""The part that all sources of text share: an endless stream of windows of tokens."""

from typing import Any, Generic, TypeVar

from refrag.data.text import open_windows
from refrag.model.checkpoint import Checkpoint
from refrag.training.settings import Continue, Pretrain, Reconstruct, Recover

TextRun = TypeVar("TextRun", Pretrain, Recover, Reconstruct, Continue)


class WindowSource(Generic[TextRun]):
    """Source whose position is that of its windows."""

    def __init__(
        self, checkpoint: Checkpoint, settings: TextRun, process_index: int = 0, num_processes: int = 1
    ) -> None:
        self.checkpoint = checkpoint
        self.settings: TextRun = settings
        self.windows = open_windows(settings.sources, checkpoint.decoder_tokenizer, process_index, num_processes)

    def state(self) -> dict[str, Any]:
        return self.windows.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.windows.restore(state)
