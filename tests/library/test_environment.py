import subprocess
import sys


def test_denormal_numbers_count_as_zero_on_every_thread():
    """In a process of its own: it holds for all that follows."""
    script = """
import torch
from refrag.environment import flush_denormals

torch.set_num_threads(2)
flush_denormals()
print(int((torch.full((200_000,), 2e-38) * 0.25 != 0).sum()))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"
