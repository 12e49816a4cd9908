"""Commands of other packages: found by their entry points, loaded when they are asked for, and kept apart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refrag_client.cli.main import main

GREET = '''"""Says hello, at length."""
import argparse
HELP = "say hello"
EXTRA = "more"
class Refused(Exception):
    exit_code = 2
def add_arguments(parser):
    parser.add_argument("name")
def run(arguments):
    if arguments.name == "nobody":
        raise Refused("nobody is greeted")
    if arguments.name == "somebody":
        import no_such_module
    if arguments.name == "fault":
        import acme_greet.no_such_module
    print("hello", arguments.name)
    return 7 if arguments.name == "seven" else None
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package that offers one command where Python finds it."""

    def install(package: str, command: str, text: str) -> None:
        folder = tmp_path / package
        (folder / f"{package}-1.0.dist-info").mkdir(parents=True)
        (folder / f"{package}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\n")
        points = f"[refrag.commands]\n{command} = {package}_{command}\n"
        (folder / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(points)
        (folder / f"{package}_{command}").mkdir()
        (folder / f"{package}_{command}" / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(folder)

    return install


@pytest.fixture
def greet(install):
    install("acme", "greet", GREET)
    yield lambda *arguments: main(["greet", *arguments])
    sys.modules.pop("acme_greet", None)


def help_lines(capsys) -> dict[str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.partition("commands:\n")[2].splitlines()
    return {line.split()[0]: line for line in lines if line.startswith("  ")}


def test_a_command_of_another_package_runs_with_its_own_options(greet, capsys):
    assert greet("Ada") == 0
    assert capsys.readouterr().out == "hello Ada\n"
    assert greet("seven") == 7


def test_help_lists_every_command_with_its_line(greet, capsys):
    lines = help_lines(capsys)
    assert {"ask", "index", "store", "greet"} <= set(lines)
    assert lines["greet"].endswith("say hello")
    assert lines["ask"].endswith("ask a question about passages or a document")


def test_help_of_a_command_tells_its_description_and_options(greet, capsys):
    with pytest.raises(SystemExit):
        greet("--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: refrag greet") and "Says hello, at length." in text


def test_only_the_command_that_was_asked_for_is_imported(install, greet):
    install("other", "fault", "raise ValueError('imported')")
    assert greet("Ada") == 0
    assert "other_fault" not in sys.modules


def test_an_error_of_another_package_exits_with_its_own_code(greet, capsys):
    assert greet("nobody") == 2
    assert capsys.readouterr().err == "refrag: nobody is greeted\n"


def test_a_missing_module_is_told_with_the_extra_that_brings_it(greet, capsys):
    assert greet("somebody") == 1
    told = "refrag: `refrag greet` needs the module no_such_module: pip install 'acme[more]'\n"
    assert capsys.readouterr().err == told


def test_a_module_that_its_own_package_lacks_is_a_fault_whose_traceback_is_kept(greet, capsys):
    assert greet("fault") == 1
    told = capsys.readouterr().err
    assert told.startswith("refrag: ModuleNotFoundError: No module named 'acme_greet.no_such_module'; this is a fault")
    assert told.count("\n") == 1
    kept = Path(told.split()[-1])
    assert "Traceback" in kept.read_text() and "import acme_greet.no_such_module" in kept.read_text()
    kept.unlink()


def run_help(redirect):
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    shell = f"{sys.executable} -m refrag_client.cli.main --help {redirect}"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment)


def test_a_full_disk_is_told_in_one_line():
    done = run_help("> /dev/full")
    assert (done.returncode, done.stderr) == (1, "refrag: standard output: No space left on device\n")


@pytest.mark.parametrize("redirect", ["| true", "> /dev/full 2> /dev/full", ">&-", ">&- 2>&-"])
def test_an_output_that_takes_nothing_brings_no_traceback(redirect):
    assert not {"Traceback", "Exception ignored"}.intersection(
        re.findall(r"Traceback|Exception ignored", run_help(redirect).stderr)
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("raise ValueError('no luck')", "cannot be loaded: ValueError: no luck"),
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError"),
        ("HELP = 'half a command'", "lacks add_arguments, run"),
    ],
)
def test_a_broken_command_is_named_and_leaves_the_others_alone(install, greet, capsys, text, what):
    install("bad", "broken", text)
    assert main(["broken"]) == 1
    assert f"the command 'broken' of bad {what}" in capsys.readouterr().err
    assert greet("Ada") == 0
    assert what in help_lines(capsys)["broken"]
    sys.modules.pop("bad_broken", None)


def test_two_packages_with_one_command_are_refused_by_name(install, greet, capsys):
    install("zeta", "greet", GREET)
    assert greet("Ada") == 1
    assert "the packages acme and zeta both offer the command 'greet'" in capsys.readouterr().err
    assert "both offer" in help_lines(capsys)["greet"]


def test_an_unknown_command_is_answered_with_those_there_are(capsys):
    assert main(["aks"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("refrag: there is no command 'aks'; there are ") and "ask" in error


@pytest.mark.parametrize("arguments", [[], ["--no-such"]])
def test_no_command_and_an_unknown_option_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: refrag COMMAND" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    version = (Path(__file__).parents[1] / "VERSION").read_text().strip()
    done = subprocess.run([sys.executable, "-m", "refrag_client.cli.main", "--version"], capture_output=True, text=True)
    assert done.stdout == f"refrag {version}\n"
