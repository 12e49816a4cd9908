"""A link to a server on which everything takes its time, like one to another continent."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def slow_link(url: str, delay_seconds: float) -> Iterator[str]:
    """Yield an address at which the server at `url` is reached with this delay each way."""
    host, port = url.split(":")

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=_carry, args=(server, self.request, delay_seconds))
                back.start()
                _carry(self.request, server, delay_seconds)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as link:
        thread = threading.Thread(target=link.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{link.server_address[1]}"
        finally:
            link.shutdown()
            thread.join()


def _carry(source: socket.socket, destination: socket.socket, delay_seconds: float) -> None:
    """Hand on what one side sends until it stops; an end that is gone already needs nothing."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            time.sleep(delay_seconds)
            destination.sendall(piece)
        destination.shutdown(socket.SHUT_WR)
