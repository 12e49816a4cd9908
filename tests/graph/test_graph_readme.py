"""The README's scripts run as they stand, but for the address."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

README = (Path(__file__).parents[2] / "README.md").read_text()


def code_block(language, containing):
    (block,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b]
    return block


def at_server(code, server):
    return code.replace("127.0.0.1:8001", server.grpc_address).replace("127.0.0.1:8000", server.http_address)


@pytest.mark.parametrize("containing", ["from refrag_client", "import tritonclient"])
def test_a_python_script_streams_the_answer(server, containing):
    script = at_server(code_block("python", containing), server)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "parrot" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_server_sent_events(server):
    command = at_server(code_block("bash", "curl -N"), server)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=True)
    assert "data: {" in done.stdout
    assert '"finish_reason":"' in done.stdout


def test_the_command_line_client_compares_compressed_and_plain(server, tmp_path):
    passages = tmp_path / "passages.jsonl"
    passages.write_text('"Mara Tolen keeps a parrot."\n{"text": "Odo Marsk plays the harp."}\n')
    command = [Path(sys.executable).with_name("refrag"), "ask", "What does Mara Tolen keep?"]
    options = ["--passages", passages, "--url", server.grpc_address, "--compare"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("compressed:\n")
    assert "2 chunks" in done.stderr
    assert "TTFT plain / compressed" in done.stderr
