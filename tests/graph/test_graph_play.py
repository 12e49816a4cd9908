"""`make play` in a process of its own: one command, one corpus, one page; the page asks over the collection."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from documentation import ROOT
from playwright.sync_api import expect, sync_playwright
from raw_requests import PATIENCE_SECONDS

from refrag.export.repository import export_repository
from refrag_client import CollectionClient, RefragClient

pytest.importorskip("lancedb")
pytestmark = pytest.mark.server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUESTION = "Which animal does Mara Tolen keep?"
NOTES = {
    "mara.txt": "Mara Tolen keeps a parrot. She calls it Otto, and it calls her by her name, every morning.",
    "odo.txt": "Odo Marsk plays the harp, which Mara Tolen lent him. He learnt it on a ship, from its cook.",
    "viggo.txt": "Viggo Upton built the lighthouse of Karsk, which has stood on its rock for a hundred years.",
}
# A folder for the picture in docs/: `SCREENSHOTS=docs python -m pytest tests/graph/test_graph_play.py`.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@contextmanager
def playing(repository, corpus, data):
    """Yield the addresses that the command prints; Ctrl-C must end it in order."""
    options = {"repository": repository, "corpus": corpus, "data": data, "port": 0}
    command = [sys.executable, "-m", "examples.play", *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            addresses = {}
            for line in process.stdout:
                if line.startswith("ready"):
                    break
                name, _, address = line.partition(" ")
                addresses[name] = address.strip()
            yield addresses
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.fixture(scope="module")
def searching_repository(tmp_path_factory, request) -> Path:
    path = tmp_path_factory.mktemp("searching")
    export_repository(request.config.rootpath / "checkpoints" / "world", path, has_retrieval=True)
    return path


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def addresses(searching_repository, notes, tmp_path_factory):
    with playing(searching_repository, notes, tmp_path_factory.mktemp("play")) as addresses:
        yield addresses


def read_collections(addresses):
    with urllib.request.urlopen(f"{addresses['openai']}/collections", timeout=PATIENCE_SECONDS) as response:
        return [(each["id"], each["num_passages"]) for each in json.loads(response.read())["data"]]


def find(addresses, question):
    with CollectionClient(addresses["grpc"], timeout_seconds=PATIENCE_SECONDS) as client:
        found = client.search(addresses["collection"], question, search_mode="text")
        return {passage.title for passage in found}


def test_the_corpus_is_a_collection_which_follows_its_files_and_ctrl_c_ends_all(searching_repository, notes, tmp_path):
    corpus = shutil.copytree(notes, tmp_path / "notes")
    for names in (set(NOTES), set(NOTES) - {"viggo.txt"}):
        with playing(searching_repository, corpus, tmp_path / "data") as addresses:
            assert addresses["collection"].startswith("notes-")
            assert read_collections(addresses) == [(addresses["collection"], len(names))]
            assert find(addresses, "lighthouse of Karsk") == names & {"viggo.txt"}
            assert find(addresses, "a parrot") == {"mara.txt"}
        for address in (addresses["grpc"], addresses["page"].removeprefix("http://").removesuffix("/")):
            host, port = address.split(":")
            with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
                pass
        (corpus / "viggo.txt").unlink(missing_ok=True)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_asks_over_a_collection_and_draws_what_was_found(addresses):
    with RefragClient(addresses["grpc"], timeout_seconds=PATIENCE_SECONDS) as client:
        collection, shares = addresses["collection"], (0.5, 1.0)
        expected = [
            client.generate(QUESTION, collection=collection, num_passages=2, expand_fraction=share, max_tokens=64)
            for share in shares
        ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=1000 * PATIENCE_SECONDS)
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        expect.set_options(timeout=1000 * PATIENCE_SECONDS)
        page.goto(addresses["page"])
        expect(page.get_by_label("Collection")).to_be_visible()
        page.get_by_label("Collection").select_option(collection)
        expect(page.get_by_label("Passages, with blank lines")).to_be_hidden()
        page.get_by_label("Retrieve").fill("2")
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#plain .times")).to_contain_text("whole answer")
        told = [page.locator(f"#{way} .text").inner_text().strip() for way in ("compressed", "plain")]
        assert told == [answer.text.strip() for answer in expected]
        named = [name.split(" ")[0] for name in page.locator(".passage b").all_inner_texts()]
        assert named == [passage.title for passage in expected[0].passages] == ["mara.txt", "odo.txt"]
        assert page.locator(".chunk").count() == expected[0].statistics.num_chunks
        page.locator(".chunk.expanded").first.hover()
        expect(page.locator("#detail")).to_contain_text("weighs")
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/page.png", full_page=True)
        browser.close()
