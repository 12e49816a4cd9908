"""LangChain, LlamaIndex, Haystack and LiteLLM against the real endpoint; `make frameworks` builds their environment.

Our connectors keep the citations; the frameworks' own OpenAI classes answer through `extra_body`.
"""

import json
import os
import subprocess

import pytest
from documentation import ROOT
from raw_requests import PATIENCE_SECONDS
from test_graph_cancel import PASSAGES, QUESTION

PYTHON = ROOT / "build/frameworks/bin/python"
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="the frameworks are not installed; `make frameworks` does that"),
]

START = f"""
import json, sys
URL, QUESTION, PASSAGES = sys.argv[1], {QUESTION!r}, {PASSAGES!r}
OPTIONS = {{"max_tokens": 12}}
REFRAG = {{"expand_fraction": 1}}
BODY = {{"documents": PASSAGES, "refrag": REFRAG}}
from examples.frameworks.asking import Endpoint
ENDPOINT = Endpoint(URL, refrag=REFRAG, options=OPTIONS)
def tell(text, citations):
    sources = citations and [source["document"]["text"] for source in citations[0]["sources"]]
    print(json.dumps({{"text": text, "sources": sources}}))
"""

CONNECTORS = {
    "langchain": """
from langchain_core.documents import Document
from examples.frameworks.langchain import ChatRefrag
model = ChatRefrag(base_url=URL, refrag=REFRAG, options=OPTIONS)
documents = [Document(text) for text in PASSAGES]
answer = model.invoke(QUESTION, documents=documents)
assert answer.usage_metadata["output_tokens"] <= 12
tell(answer.content, answer.response_metadata["citations"])
parts = list(model.stream(QUESTION, documents=documents))
assert len(parts) > 2
whole = sum(parts[1:], parts[0])
tell(whole.content, whole.response_metadata["citations"])
""",
    "langchain, retriever": """
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from examples.frameworks.langchain import ChatRefrag
class Fixed(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager): return [Document(text) for text in PASSAGES]
answer = ChatRefrag(base_url=URL, refrag=REFRAG, options=OPTIONS, retriever=Fixed()).invoke(QUESTION)
tell(answer.content, answer.response_metadata["citations"])
""",
    "llama_index": """
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from examples.frameworks.llama_index import RefragQueryEngine
class Fixed(BaseRetriever):
    def _retrieve(self, query): return [NodeWithScore(node=TextNode(text=text), score=1.0) for text in PASSAGES]
response = RefragQueryEngine(Fixed(), ENDPOINT).query(QUESTION)
tell(response.response, response.metadata["citations"])
stream = RefragQueryEngine(Fixed(), ENDPOINT, is_streaming=True).query(QUESTION)
text = "".join(stream.response_gen)
tell(text, stream.metadata["citations"])
""",
    "haystack": """
from haystack import Document, Pipeline
from examples.frameworks.haystack import RefragGenerator
documents = [Document(content=text) for text in PASSAGES]
pipeline = Pipeline()
pipeline.add_component("generator", RefragGenerator(ENDPOINT))
outputs = pipeline.run({"generator": {"prompt": QUESTION, "documents": documents}})["generator"]
tell(outputs["replies"][0], outputs["citations"])
pieces = []
outputs = RefragGenerator(ENDPOINT, pieces.append).run(QUESTION, documents)
assert len(pieces) > 2 and "".join(piece.content for piece in pieces) == outputs["replies"][0]
tell(outputs["replies"][0], outputs["citations"])
""",
    "litellm": """
import litellm
messages = [{"role": "user", "content": QUESTION}]
options = {"base_url": URL, "api_key": "none", "extra_body": BODY, **OPTIONS}
message = litellm.completion("openai/refrag", messages, **options).choices[0].message
tell(message.content, message.provider_specific_fields["citations"])
deltas = [chunk.choices[0].delta for chunk in litellm.completion("openai/refrag", messages, stream=True, **options)]
[citations] = [delta.citations for delta in deltas if getattr(delta, "citations", None)]
tell("".join(delta.content or "" for delta in deltas), citations)
""",
}
# Which drop the citations.
THEIR_OWN = {
    "langchain": """
from langchain_openai import ChatOpenAI
model = ChatOpenAI(base_url=URL, api_key="none", model="refrag", extra_body=BODY, stream_usage=True, **OPTIONS)
tell(model.invoke(QUESTION).content, None)
tell("".join(part.content for part in model.stream(QUESTION)), None)
""",
    "llama_index": """
from llama_index.llms.openai_like import OpenAILike
from llama_index.core.llms import ChatMessage
options = {"is_chat_model": True, "additional_kwargs": {"extra_body": BODY}, **OPTIONS}
model = OpenAILike(model="refrag", api_base=URL, api_key="none", **options)
tell(model.chat([ChatMessage(QUESTION)]).message.content, None)
tell("".join(part.delta or "" for part in model.stream_chat([ChatMessage(QUESTION)])), None)
""",
    "haystack": """
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
options = {"generation_kwargs": {"extra_body": BODY, **OPTIONS}, "api_key": Secret.from_token("none")}
make = lambda **more: OpenAIChatGenerator(model="refrag", api_base_url=URL, **options, **more)
tell(make().run([ChatMessage.from_user(QUESTION)])["replies"][0].text, None)
pieces = []
make(streaming_callback=pieces.append).run([ChatMessage.from_user(QUESTION)])
tell("".join(piece.content for piece in pieces), None)
""",
}


@pytest.fixture(scope="module")
def expected(client):
    return client.generate(QUESTION, PASSAGES, expand_fraction=1, max_tokens=12).text


def run(script, base_url):
    """Run a script in the frameworks' environment; return what it tells."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HAYSTACK_TELEMETRY_ENABLED": "False"}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, "-c", START + script, base_url],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("name", CONNECTORS)
def test_answers_and_citations_come_through_whole_and_streamed(base_url, expected, name):
    told = run(CONNECTORS[name], base_url)
    assert told
    for each in told:
        assert each == {"text": expected, "sources": PASSAGES}


@pytest.mark.parametrize("name", THEIR_OWN)
def test_the_frameworks_own_classes_answer_over_the_documents(base_url, expected, name):
    told = run(THEIR_OWN[name], base_url)
    assert [each["text"] for each in told] == [expected, expected]
