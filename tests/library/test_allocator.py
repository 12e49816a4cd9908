"""The allocator's settings are taken, and what was freed is there for the next."""

import subprocess
import sys

import pytest

from refrag.machine.allocator import keep_freed_memory

CODE = """
import resource, threading
from refrag.machine.allocator import keep_freed_memory
assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    blocks = [bytearray(1 << 20) for _ in range(8)]

work()
before = faults()
thread = threading.Thread(target=lambda: [work() for _ in range(50)])
thread.start()
thread.join()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_memory_that_was_freed_is_not_paged_in_again():
    """8 MiB, 50 times over, in a thread: 100,000 pages if each time they were new ones."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000


def test_another_system_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
