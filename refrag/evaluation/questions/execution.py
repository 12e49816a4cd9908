"""Options of how a run computes, for the command line. No answer depends on them beyond rounding."""

from dataclasses import dataclass, field

import torch

from refrag.errors import InvalidRequest

GPU = "cuda"
GPU_ROWS = 64


@dataclass(frozen=True)
class Execution:
    """The device that a run computes on, and how much at once; raises InvalidRequest for what cannot be.

    device: as PyTorch names it; None for the GPU where there is one, else the CPU.
    batch_rows: rows whose prompts are read together; None for 64 on a GPU, 1 on a CPU, which padding would only delay.
    """

    device: str | None = field(
        default=None, metadata={"type": str, "help": "cpu, cuda or cuda:N (default: cuda where there is a GPU)"}
    )
    batch_rows: int | None = field(
        default=None,
        metadata={"type": int, "help": f"rows whose prompts are read together (default: {GPU_ROWS} on a GPU, else 1)"},
    )

    def __post_init__(self) -> None:
        if self.device is not None:
            _refuse_absent(self.device)
        if self.batch_rows is not None and self.batch_rows < 1:
            raise InvalidRequest(f"batch_rows is {self.batch_rows}; it must be at least 1")

    @property
    def torch_device(self) -> torch.device:
        """Return the device as torch has it."""
        return torch.device(self.device or (GPU if torch.cuda.is_available() else "cpu"))

    @property
    def rows_at_once(self) -> int:
        """Return how many rows are read together."""
        return self.batch_rows or (GPU_ROWS if self.torch_device.type == GPU else 1)

    def describe(self) -> dict[str, str | int]:
        """Return what a report tells of it."""
        return {"device": str(self.torch_device), "batch_rows": self.rows_at_once}


def _refuse_absent(name: str) -> None:
    count = torch.cuda.device_count()
    allowed = ["cpu", *([GPU] if count else []), *(f"{GPU}:{number}" for number in range(count))]
    if name not in allowed:
        absent = "" if count else "; PyTorch finds no GPU"
        raise InvalidRequest(f"device is {name!r}; allowed here: {', '.join(allowed)}{absent}")
