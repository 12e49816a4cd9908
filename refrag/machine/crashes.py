"""Crashes of a process (a signal from native code) leave in its log what its Python threads were doing."""

import faulthandler


def tell_of_crashes() -> None:
    """Write the Python stack of every thread to stderr if the process crashes from now on.

    For the models' processes: the Python in Triton's stub does not read PYTHONFAULTHANDLER. Whoever has already chosen
    where to write, as pytest has, keeps that.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable()
