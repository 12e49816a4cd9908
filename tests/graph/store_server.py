"""A server with a store of its own, and ways to look into the store and to damage it."""

import re
import subprocess
import sys
import time
import urllib.request

from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS

from refrag.embedded import EmbeddedServer
from refrag_client import RefragClient, StoreClient

MAX_TOKENS = 16
# A busy machine's Redis answers late, and tests are of what it holds; one that is killed refuses at once.
REDIS_TIMEOUT_MS = 30_000


class Served:
    """A server with a store of its own, and a client of it."""

    def __init__(self, repository, store_folder, **environment):
        self.store_folder = store_folder
        variables = {f"REFRAG_STORE_{name}": str(value) for name, value in environment.items()}
        # Without probes, whose passage the store would hold too.
        self.server = EmbeddedServer(
            repository,
            **SERVER_OPTIONS,
            probe_seconds=0,
            environment={"REFRAG_STORE_DISK_PATH": str(store_folder), **variables},
        )

    def __enter__(self):
        self.server.start()
        self.client = RefragClient(self.server.grpc_address)
        self.store = StoreClient(self.server.grpc_address)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.store.close()
        self.server.stop()

    def ask(self, context):
        return self.client.generate(context.questions[0].text, context.passages, max_tokens=MAX_TOKENS)

    def metric(self, name, **labels):
        with urllib.request.urlopen(f"http://{self.server.metrics_address}/metrics", timeout=30) as response:
            lines = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", response.read().decode(), re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for found, value in lines if all(label in found for label in wanted))

    def wait_for_metric(self, name, at_least, **labels):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (value := self.metric(name, **labels)) < at_least:
            assert time.monotonic() < deadline, f"{name} {labels} is {value}, expected {at_least}"
            time.sleep(0.1)
        return value


def check_answers(served, contexts, expected):
    answers = [served.ask(context) for context in contexts]
    assert [answer.token_ids for answer in answers] == expected
    return [answer.statistics for answer in answers]


def flip_values(path):
    """Damage every vector on the disk, past the checks that LMDB has of its own."""
    code = """
        import sys; from pathlib import Path
        from refrag.store.tiers.disk import DiskTier
        tier = DiskTier(Path(sys.argv[1]), 4096 * 2**20)
        entries, _ = tier.scan(b"", 10**6)
        tier.put({key: value[:-1] + bytes([value[-1] ^ 1]) for key, value in entries})
        print(len(entries))
    """
    lines = [line.strip() for line in code.strip().splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
