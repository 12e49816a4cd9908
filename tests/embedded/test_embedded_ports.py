import socket

import pytest

from refrag.embedded.ports import PICKED_PORTS, is_port_free, pick_free_port
from refrag.embedded.requirements import Machine
from refrag.embedded.server import EmbeddedServer, with_picked_ports
from refrag.embedded.settings import ServerSettings
from refrag.errors import SetupError


@pytest.fixture
def busy_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_somebody_listens_on_is_not_free(busy_port):
    assert not is_port_free("127.0.0.1", busy_port)


def test_a_picked_port_is_free_and_outside_the_ephemeral_range():
    port = pick_free_port("127.0.0.1")
    assert is_port_free("127.0.0.1", port)
    assert port in PICKED_PORTS


def test_picking_ports_keeps_the_fixed_ones_and_never_takes_one_twice():
    settings = with_picked_ports(ServerSettings(http_port=0, grpc_port=9001, metrics_port=0))
    assert settings.grpc_port == 9001
    assert len({0, *settings.ports.values()}) == 4


def test_inspecting_reports_only_the_busy_port(busy_port):
    machine = Machine.inspect(ServerSettings(http_port=busy_port, grpc_port=0, metrics_port=0))
    assert machine.busy_ports == {busy_port: "Address already in use"}


def test_an_address_that_is_not_this_machines_is_told_as_the_system_does():
    machine = Machine.inspect(ServerSettings(host="192.0.2.1", http_port=8000, grpc_port=0, metrics_port=0))
    assert machine.busy_ports == {8000: "Cannot assign requested address"}


def test_starting_on_a_busy_port_says_which_and_launches_nothing(busy_port, repository):
    server = EmbeddedServer(repository, http_port=0, grpc_port=busy_port, metrics_port=0)
    with pytest.raises(SetupError, match=f"grpc port {busy_port}"):
        server.start()
    assert server.process_id is None
