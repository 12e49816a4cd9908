"""Metrics of a running server."""

import re
import time
import urllib.request

from raw_requests import PATIENCE_SECONDS


def read_metric(server, name):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as response:
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", response.read().decode(), re.MULTILINE)
    return sum(map(float, found))


def wait_for_metric(server, name, at_least):
    """Wait until the metric has come so far; most are brought up to date once a second."""
    wait_for(lambda: read_metric(server, name) >= at_least)


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
