"""A real Redis of the tests' own."""

import shutil
import socket
import subprocess
import time

import pytest
import redis

PATIENCE_SECONDS = 20.0

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class RedisServer:
    """Starts at once, keeps nothing, and can be killed and started again on the same port."""

    def __init__(self, folder, *options):
        self.folder, self.options = folder, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            ["redis-server", *fixed, "--dir", str(self.folder), *self.options], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline and self.process.poll() is None, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def _answers(self):
        try:
            with redis.Redis(port=self.port) as client:
                return client.ping()
        except redis.RedisError:
            return False
