"""Settings of torch's CPU threads."""

import torch


def flush_denormals() -> None:
    """Treat numbers too small for a CPU's fast arithmetic as zero; call it before torch has started its threads.

    A nearly certain softmax, and gradients from a few answer tokens, are full of such numbers. Without them, the
    backward pass takes a quarter of the time.
    """
    torch.set_flush_denormal(True)


def compute_alone() -> int:
    """Make the calling thread compute without helper threads from now on; return how many threads it had, itself too.

    For a process in which another thread computes. A thread that ever had helpers keeps them. Once there are more
    threads than cores, GNU's OpenMP puts them to sleep after each of the hundreds of parallel parts of a forward pass,
    instead of letting them wait awake for the next. A prefill of 573 slots of the demo decoder took 38 ms that way, and
    takes 29 if only one thread has helpers.
    """
    # A thread that has never asked for its number takes over what other threads set later.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return num_threads
