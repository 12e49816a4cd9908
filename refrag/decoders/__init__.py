"""Decoders for the ensemble's last model, by name: the value of `decoder_backend` in its config.pbtxt.

Each decoder is one file, with a class that fulfils `refrag.decoders.base.DecoderBackend`, and one line here.
"""

from refrag.decoders.base import DecoderBackend
from refrag.errors import SetupError
from refrag.plugins import Table

DECODERS: Table[type[DecoderBackend]] = Table(
    kind="decoder_backend",
    group="refrag.decoders",
    built_in={
        "torch": "refrag.decoders.torch_engine:TorchDecoder",
        "vllm": "refrag.decoders.vllm:VllmDecoder",
    },
    unknown=SetupError,
)
