import os
import subprocess
import sys


def test_denormal_numbers_count_as_zero_on_every_thread():
    """The setting lasts as long as its process, so it is made in a separate one."""
    script = """
import torch
from refrag.machine.threads import flush_denormals

torch.set_num_threads(2)
flush_denormals()
print(int((torch.full((200_000,), 2e-38) * 0.25 != 0).sum()))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"


def test_only_one_thread_has_helpers_where_another_computes_alone():
    """The threads are counted by Linux, in a separate process."""
    script = """
import os, threading, torch
from refrag.machine.threads import compute_alone

def num_threads():
    return len(os.listdir("/proc/self/task"))

def compute():
    (torch.ones(2_000_000) * 2).sum()
    (torch.ones(500, 500) @ torch.ones(500, 500)).sum()

def compute_with_help():
    torch.set_num_threads(2)
    compute()
    helped.set()
    done.wait()

helped, done = threading.Event(), threading.Event()
before = compute_alone()
counts = [num_threads()]
compute()
counts.append(num_threads())
thread = threading.Thread(target=compute_with_help)
thread.start()
helped.wait()
compute()
counts.append(num_threads())
done.set()
print(before, *[count - counts[0] for count in counts])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["2", "0", "0", "2"], "of those that came, one computes, and one helps it"
