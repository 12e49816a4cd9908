import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from refrag.embedded.settings import ServerSettings, add_options, settings_from_arguments


def parse(*arguments: str) -> ServerSettings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return settings_from_arguments(parser.parse_args(arguments))


def test_no_arguments_give_the_dataclass_defaults():
    assert parse() == ServerSettings()


def test_every_option_has_help():
    assert all(each.metadata["help"] for each in fields(ServerSettings))


def test_arguments_arrive_with_their_types():
    settings = parse("--model-repository=models", "--http-port=9000", "--gpu-metrics=true", "--environment=A=b=c")
    assert settings.model_repository == Path("models")
    assert (settings.http_port, settings.gpu_metrics, settings.environment) == (9000, True, {"A": "b=c"})


def test_repeated_arguments_are_collected_in_order():
    settings = parse("--server-arguments=--log-verbose=1", "--server-arguments=--strict-readiness=true")
    assert settings.server_arguments == ("--log-verbose=1", "--strict-readiness=true")


@pytest.mark.parametrize("argument", ["--gpu-metrics=1", "--environment=A", "--http-port=http", "--no-such=1"])
def test_an_argument_that_makes_no_sense_is_refused(argument):
    with pytest.raises(SystemExit):
        parse(argument)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"http_port": 70000}, "http_port is 70000"),
        ({"http_port": 8001}, "three different ports"),
        ({"ready_timeout_seconds": 0}, "ready_timeout_seconds is 0"),
        ({"drain_timeout_seconds": 0}, "drain_timeout_seconds is 0"),
        ({"environment": {"OMP_NUM_THREADS": 4}}, "environment has OMP_NUM_THREADS = 4; give text"),
        ({"server_arguments": ("--http-restricted-api=model-config,health:key=a",)}, "closes health on HTTP"),
        ({"server_arguments": ("--http-restricted-api", "health:key=a")}, "closes health on HTTP"),
    ],
)
def test_settings_refuse_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**options)


@pytest.mark.parametrize("separator", ["=", " "])
def test_what_the_servers_arguments_close_is_known(separator):
    restriction = f"--http-restricted-api{separator}inference,logging:my-key=secret".split(" ")
    settings = ServerSettings(server_arguments=("--strict-readiness", *restriction))
    assert settings.closes("inference") and not settings.closes("statistics")
    assert not ServerSettings().closes("inference")


def test_flags_and_their_values_are_joined():
    arguments = ("--exit-on-error", "--log-verbose", "1", "--log-info=0", "--allow-metrics", "false")
    joined = ["--exit-on-error", "--log-verbose=1", "--log-info=0", "--allow-metrics=false"]
    assert ServerSettings(server_arguments=arguments).joined_arguments == joined


def test_three_picked_ports_are_no_conflict():
    ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
