"""The documentation's commands and scripts that need a server run as they stand, but for addresses and ports."""

import http.client
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from documentation import command_blocks, make_checkout, pages_run_by, read_page, run_block
from raw_requests import SERVER_OPTIONS
from test_graph_engine import wait_for_metric

pytestmark = pytest.mark.server

HERE = "tests/graph/test_graph_docs.py"
BLOCKS = [block for page in pages_run_by(HERE) for block in command_blocks(page, HERE)]
SERVE, ENDPOINT = re.compile(r"(make|refrag) serve"), re.compile(r"^refrag openai$", re.MULTILINE)
SERVE_OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SERVER_OPTIONS.items()]
# What a block prints that says that it did its work, by what it holds: the first that fits.
SIGNS = {"curl -N": '"finish_reason":"', "--compare": "TTFT plain / compressed", "Mara Tolen": "parrot"}


@pytest.fixture
def checkout(tmp_path, repository):
    folder = make_checkout(tmp_path)
    shutil.rmtree(folder / "model_repository")
    (folder / "model_repository").symlink_to(repository)
    lines = '"Mara Tolen keeps a parrot."\n{"text": "Odo Marsk plays the harp."}\n'
    for name in ("passages.jsonl", "corpus.jsonl"):
        (folder / name).write_text(lines)
    (folder / "notes").mkdir()
    (folder / "notes" / "pets.txt").write_text("Mara Tolen keeps a parrot.\n")
    (folder / "notes.txt").write_text("Mara Tolen keeps a parrot.\n\nOdo Marsk plays the harp.\n")
    return folder


def at_server(code, server, base_url):
    code = code.replace("http://127.0.0.1:9000/v1", base_url)
    code = code.replace("127.0.0.1:8001", server.grpc_address).replace("127.0.0.1:8000", server.http_address)
    return re.sub(r"\b(refrag (?:ask|chat|summarize|index|store \w+))", rf"\1 --url {server.grpc_address}", code)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if not (SERVE.search(block.code) or ENDPOINT.search(block.code))],
    ids=lambda b: b.page,
)
def test_a_command_or_script_does_what_it_is_there_for(block, server, base_url, checkout):
    if "curl" in block.code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = run_block(block, at_server(block.code, server, base_url), checkout)
    assert next((sign for word, sign in SIGNS.items() if word in block.code), "") in printed


@pytest.mark.parametrize("block", [block for block in BLOCKS if SERVE.search(block.code)], ids=lambda b: b.page)
def test_a_server_starts_and_ends_as_the_pages_say(block, checkout):
    [command] = block.commands
    if command.startswith("make"):
        # The recipe itself, since ports are free to choose there.
        dry_run = ["make", "--dry-run", "--assume-old=.venv/.installed", *command.split()[1:]]
        command = subprocess.check_output(dry_run, cwd=checkout, text=True).splitlines()[-1]
    arguments = command.replace(".venv/bin/", "").split()
    program = Path(sys.executable).with_name(arguments[0])
    with subprocess.Popen(
        [program, *arguments[1:], *SERVE_OPTIONS], cwd=checkout, stdout=subprocess.PIPE, text=True
    ) as run:
        is_ready = any(line.startswith("ready after") for line in run.stdout)
        run.send_signal(signal.SIGTERM)
    assert is_ready
    assert run.returncode == 0


@pytest.mark.parametrize("block", [block for block in BLOCKS if ENDPOINT.search(block.code)], ids=lambda b: b.page)
def test_the_endpoint_starts_and_ends_as_the_pages_say(block, server):
    [command] = block.commands
    program, *arguments = command.split()
    options = ["--port=0", f"--url={server.grpc_address}"]
    with subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments, *options], stdout=subprocess.PIPE, text=True
    ) as run:
        is_ready = any(line.startswith("ready") for line in run.stdout)
        run.send_signal(signal.SIGTERM)
    assert is_ready
    assert run.returncode == 0


def test_the_metrics_are_those_that_the_page_lists(server, client):
    question, passages = "Which animal does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
    client.generate(question, passages, expand_fraction=0, shadow_fraction=1)
    wait_for_metric(server, "refrag_shadow_agreement_count", 1)
    host, port = server.metrics_address.split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
    served = set(re.findall(r"^# TYPE (refrag_\w+) (\w+)", metrics, re.MULTILINE))
    documented = set(re.findall(r"^\| `(refrag_\w+)` \| (\w+) \|", read_page("docs/operations.md"), re.MULTILINE))
    # The one of collections, which this repository has not.
    assert documented == served | {("refrag_search_seconds", "histogram")}
