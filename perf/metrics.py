"""Reads the metrics that a running server tells."""

import re
import urllib.request

from refrag.embedded import EmbeddedServer


def read_metric(server: EmbeddedServer, name: str, label: str = "") -> list[float]:
    """Return the metric's values, of all series that have the label; none if it has not been told yet.

    label: like 'model="decoder"'. The models bring theirs up to date once a second.
    """
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=60) as page:
        text = page.read().decode()
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*{re.escape(label)}.*}})? (\S+)$", text, re.MULTILINE)]
