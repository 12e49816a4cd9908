"""Long documents through the real server: up to k times the decoder's window, in their order, by the commands."""

import json
import random

import pytest

from refrag_client.cli.main import main

pytestmark = pytest.mark.server

WINDOW, CHUNK_SIZE = 4096, 16
WORDS = "harbour lamp winter keeper barrel rope tide letter ship oil bridge mill parrot flute engine coat".split()


def write_document(path, num_sentences):
    rng = random.Random("documents")
    sentences = [f"On day {day} the {' '.join(rng.choices(WORDS, k=12))}." for day in range(num_sentences)]
    path.write_text("\n\n".join(" ".join(sentences[start : start + 8]) for start in range(0, num_sentences, 8)))


def run_json(capsys, server, *arguments):
    assert main([*arguments, "--json", "--url", server.grpc_address, "--timeout-seconds", "600"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_document_of_several_windows_is_summarised_and_found_again(server, capsys, tmp_path):
    write_document(tmp_path / "d.txt", 300)
    summary, progress = run_json(capsys, server, "summarize", str(tmp_path / "d.txt"), "--max-tokens", "8")
    assert "100%" in progress
    statistics = summary["statistics"]
    assert statistics["context_tokens"] > 2 * WINDOW
    assert statistics["num_stored_chunks"] == statistics["num_chunks"], "all of it was encoded ahead"
    arguments = ["ask", "What was on day 7?", "--document", str(tmp_path / "d.txt"), "--max-tokens", "8"]
    answer, progress = run_json(capsys, server, *arguments)
    assert " 0 chunks encoded" in progress
    assert answer["statistics"]["num_chunks"] == statistics["num_chunks"]
    assert answer["citations"]


@pytest.mark.slow
def test_a_document_of_nearly_sixteen_windows_is_summarised(server, capsys, tmp_path):
    write_document(tmp_path / "d.txt", 1750)
    summary, _ = run_json(capsys, server, "summarize", str(tmp_path / "d.txt"), "--max-tokens", "8")
    statistics = summary["statistics"]
    assert statistics["context_tokens"] > 0.9 * CHUNK_SIZE * WINDOW
    assert statistics["prompt_slots"] <= WINDOW - 8


def test_a_binary_document_is_refused_by_name_before_anything_is_sent(server, capsys, tmp_path):
    (tmp_path / "d.bin").write_bytes(b"\x7fELF\x00\x01")
    assert main(["summarize", str(tmp_path / "d.bin"), "--url", server.grpc_address]) == 2
    assert "d.bin is a binary file (a zero byte at 4); give one of plain text" in capsys.readouterr().err
