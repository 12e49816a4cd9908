"""Assembles and runs the real tritonserver that the nvidia-pytriton wheel carries: no Docker, no root.

requirements   what the machine must offer, checked before anything starts
runtime        the backend and cache directories the server is pointed at
process        the server as a child process that cannot outlive us, nor leave anything behind
server         EmbeddedServer: start, wait until ready, stop; errors taken from the server's log
backends/      the ONNX Runtime backend the wheel lacks
batched_model  many requests to an ONNX model in few runs
turns          long batches in pieces, between which others have their turn
"""

from refrag.embedded.server import EmbeddedServer
from refrag.embedded.settings import ServerSettings

__all__ = ["EmbeddedServer", "ServerSettings"]
