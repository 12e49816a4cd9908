"""Finds ports that are free."""

import random
import socket
from collections.abc import Collection

# Below Linux's ephemeral range (32768 and up): the server binds only after all models have loaded,
# and an outgoing connection of another process must not take the port meanwhile.
PICKED_PORTS = range(20000, 32000)
_NUM_ATTEMPTS = 200


def why_not_free(host: str, port: int) -> str | None:
    """Return the system's reason why the port cannot be opened, None if it can: not every one is taken."""
    with socket.socket() as probe:
        # The server sets it too, so a port whose last connection lingers in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def is_port_free(host: str, port: int) -> bool:
    return why_not_free(host, port) is None


def pick_free_port(host: str, taken: Collection[int] = ()) -> int:
    """Return a port that is free now and not in `taken`; raise OSError if the machine seems to have none."""
    for _ in range(_NUM_ATTEMPTS):
        port = random.choice(PICKED_PORTS)
        if port not in taken and is_port_free(host, port):
            return port
    raise OSError(
        f"found no free port on {host} among {PICKED_PORTS.start}–{PICKED_PORTS.stop - 1}; name one outside that range"
    )
