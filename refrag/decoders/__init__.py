"""Decoders that can stand behind the ensemble, by the name that the model `decoder` has as its `decoder_backend`.

Each is one file: a class that fulfils `refrag.decoders.base.DecoderBackend`, and a line here.
"""

from refrag.decoders.base import DecoderBackend
from refrag.errors import SetupError
from refrag.plugins import Table

DECODERS: Table[type[DecoderBackend]] = Table(
    kind="decoder_backend",
    group="refrag.decoders",
    built_in={"torch": "refrag.decoders.torch_engine:TorchDecoder"},
    unknown=SetupError,
)
