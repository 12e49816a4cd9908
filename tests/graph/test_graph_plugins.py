"""A decoder and a policy, each one file of a package that somebody else installed, answer on a real server."""

import shutil
import site
import sys
import textwrap
import venv

import pytest
from raw_requests import SERVER_OPTIONS
from repository_edits import set_parameter

from refrag.embedded import EmbeddedServer
from refrag.errors import SetupError
from refrag_client import InvalidRequest, RefragClient

pytestmark = pytest.mark.server

TOY_DECODER = '''
"""Answers at once with what its prompt holds."""

from dataclasses import dataclass

from refrag.config import RefragConfig
from refrag.decoders.base import DecoderStats, Delta, Limits


@dataclass(frozen=True)
class ToySettings:
    greeting: str = "nothing"


class ToyDecoder:
    settings_type = ToySettings

    def __init__(self, checkpoint, settings, observe):
        self.settings = settings
        self.limits = Limits(vocab_size=2048, width=192, window=RefragConfig.load(checkpoint).max_prompt_slots)

    def submit(self, request, sink):
        num_rows = int((request.prompt.input_ids >= self.limits.vocab_size).sum())
        sink.send(Delta(f"{self.settings.greeting}: ", [1]))
        sink.send(Delta(f"{num_rows} compressed", [2], finish_reason="stop"))

    def stop(self, request_id):
        pass

    def stats(self):
        return DecoderStats()

    def close(self):
        pass
'''
TOY_POLICY = '''
"""Expands the last chunks."""

from refrag.policies.base import Policy


def select_last(candidates, budget):
    return range(len(candidates) - budget, len(candidates))


POLICY = Policy("the last chunks", "nothing", select_last)
'''
ENTRY_POINTS = """
[refrag.decoders]
toy = toy_decoder:ToyDecoder

[refrag.policies]
last = toy_policy:POLICY
"""
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot in the old harbour house."] * 10


@pytest.fixture(scope="module")
def environment_with_toys(tmp_path_factory):
    """Make a virtual environment with the tests' own packages, and one more; return its Python."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    ours = next(path for path in site.getsitepackages() if path.endswith("site-packages"))
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    (packages / "toy_decoder.py").write_text(textwrap.dedent(TOY_DECODER))
    (packages / "toy_policy.py").write_text(textwrap.dedent(TOY_POLICY))
    metadata = packages / "refrag_toys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: refrag-toys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def toy_client(repository, tmp_path_factory, environment_with_toys):
    """Asks a server whose Python models run in that environment, the toy as its decoder."""
    copy = shutil.copytree(repository, tmp_path_factory.mktemp("toys") / "repository")
    config = copy / "decoder" / "config.pbtxt"
    head = config.read_text().split("parameters {", 1)[0]
    config.write_text(
        head
        + 'parameters { key: "decoder_backend" value { string_value: "toy" } }\n'
        + 'parameters { key: "greeting" value { string_value: "hello" } }\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        # The server's Python models run under the first Python of its PATH, which is the running one's.
        patch.setattr(sys, "executable", str(environment_with_toys))
        with (
            EmbeddedServer(copy, **SERVER_OPTIONS) as server,
            RefragClient(server.grpc_address) as client,
        ):
            yield client


def test_the_toys_answer(toy_client):
    answer = toy_client.generate(QUESTION, PASSAGES, policy="last", expand_fraction=0.2)
    statistics = answer.statistics
    num_expanded = len(statistics.expanded_chunks)
    assert num_expanded == statistics.num_chunks // 5 > 0
    assert list(statistics.expanded_chunks) == list(range(statistics.num_chunks))[-num_expanded:]
    assert answer.text == f"hello: {statistics.num_chunks - num_expanded} compressed"
    assert (answer.token_ids, answer.finish_reason) == ((1, 2), "stop")


def test_a_policy_that_nobody_offers_is_refused_with_the_toy_in_the_list(toy_client):
    with pytest.raises(
        InvalidRequest,
        match="policy is 'first'; allowed: learned, similarity, neighbourhood, attention, random, none, all, last",
    ):
        toy_client.generate(QUESTION, PASSAGES, policy="first")


def test_a_decoder_that_does_not_show_its_attention_refuses_the_policy_that_needs_it_by_name(toy_client):
    with pytest.raises(
        InvalidRequest, match="policy 'attention' needs the decoder's attention, which decoder 'toy' does not show"
    ):
        toy_client.generate(QUESTION, PASSAGES, policy="attention", expand_fraction=0.2)
    # With nothing to choose, nothing is needed.
    assert toy_client.generate(QUESTION, PASSAGES, policy="attention", expand_fraction=1).text == "hello: 0 compressed"


@pytest.mark.parametrize(
    ("parameter", "value", "named"),
    [
        ("decoder_backend", "best", "decoder_backend is 'best'; allowed: torch"),
        ("kv_cache_mib", "many", "parameter kv_cache_mib is 'many'; it must be a whole number"),
    ],
)
def test_a_decoder_that_cannot_be_opened_stops_the_start_and_says_why(repository, tmp_path, parameter, value, named):
    copy = shutil.copytree(repository, tmp_path / "repository")
    set_parameter(copy, "decoder", parameter, value)
    with (
        pytest.raises(SetupError, match=named),
        EmbeddedServer(copy, **SERVER_OPTIONS),
    ):
        pass
