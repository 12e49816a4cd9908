"""How a run computes, which no answer depends on beyond rounding: options for the command line."""

from dataclasses import dataclass, field

import torch

from refrag.errors import InvalidRequest

GPU = "cuda"


@dataclass(frozen=True)
class Execution:
    """Where a run computes; raises InvalidRequest for a device that is unknown or not there.

    device: as PyTorch names it; None for the GPU where there is one, else the CPU.
    """

    device: str | None = field(
        default=None, metadata={"type": str, "help": "cpu, cuda or cuda:N (default: cuda where there is a GPU)"}
    )

    def __post_init__(self) -> None:
        if self.device is not None:
            _refuse_absent(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device itself."""
        return torch.device(self.device or (GPU if torch.cuda.is_available() else "cpu"))

    def describe(self) -> dict[str, str | int]:
        """Return what a report tells of it."""
        return {"device": str(self.torch_device)}


def _refuse_absent(name: str) -> None:
    count = torch.cuda.device_count()
    allowed = ["cpu", *([GPU] if count else []), *(f"{GPU}:{number}" for number in range(count))]
    if name not in allowed:
        absent = "" if count else "; PyTorch finds no GPU"
        raise InvalidRequest(f"device is {name!r}; allowed here: {', '.join(allowed)}{absent}")
