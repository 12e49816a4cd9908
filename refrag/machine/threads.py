"""How torch computes on this machine's cores."""

import torch


def flush_denormals() -> None:
    """Take numbers too small for a CPU's fast arithmetic for zero, before torch has started its threads.

    A sure softmax, and gradients from a few answer tokens, are full of them: backward takes a quarter of the time.
    """
    torch.set_flush_denormal(True)


def compute_alone() -> int:
    """Let no other of torch's threads help the calling thread from now on, and return how many computed with it.

    For a process in which another thread computes: each thread that ever had help keeps its helpers, and once there are
    more threads than cores in all, GNU's OpenMP lets everybody sleep after each of the hundreds of parallel parts of a
    forward pass, instead of waiting awake for the next one. A prefill of 573 slots of the demo decoder took 38 ms so,
    and takes 29 where one thread alone has helpers.
    """
    # Until a thread has asked once, it takes over what others set later.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return num_threads
