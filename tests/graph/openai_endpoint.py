"""The OpenAI-compatible endpoint in a process of its own, as it is deployed."""

import subprocess
import sys
from contextlib import contextmanager

from raw_requests import PATIENCE_SECONDS


@contextmanager
def run_endpoint(grpc_address, *options):
    """Yield the base URL for clients; at the end the endpoint must stop in order."""
    command = [sys.executable, "-m", "refrag_client.cli.main", "openai", "--port=0", "--url", grpc_address, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("openai "))
        finally:
            process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
