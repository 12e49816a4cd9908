"""The commands that the library adds to `refrag` import nothing heavy until they run, and say what they lack."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from refrag_client.cli.main import main

COMMANDS = [
    "check",
    "decoders",
    "estimate",
    "evaluate",
    "export",
    "fetch",
    "heads",
    "serve",
    "teach",
    "train",
]


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_library_offers_its_commands():
    offers = [offer for offer in entry_points(group="refrag.commands") if offer.dist.name == "refrag"]
    assert sorted(offer.name for offer in offers) == COMMANDS


def test_help_lists_them_all_without_importing_torch():
    done = run_python(
        "import sys\n"
        "from refrag_client.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(bool({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command:10}" in done.stdout
    assert "cannot be loaded" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"`refrag {command}`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("export --checkpoint x", "torch", "export"),
        ("export --checkpoint x", "onnx", "export"),
        ("train run world", "pydantic", "train"),
        ("estimate world", "torch", "train"),
    ],
)
def test_a_missing_library_is_told_with_the_extra_to_install(command, module, extra):
    done = run_python(
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from refrag_client.cli.main import main\n"
        f"sys.exit(main({command.split()!r}))"
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(f"needs the module {module}: pip install 'refrag[{extra}]'\n")


def test_settings_of_the_server_that_contradict_each_other_are_a_usage_error(capsys):
    assert main(["serve", "--http-port=9", "--grpc-port=9"]) == 2
    assert capsys.readouterr().err.startswith("refrag: http, grpc and metrics need three different ports")
