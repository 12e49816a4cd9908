"""Documents of the frameworks, as the endpoint reads them."""

import pytest

pytest.importorskip("openai")
from examples.frameworks.asking import as_document
from refrag_client.openai.documents import read_document


@pytest.mark.parametrize(
    "metadata", [{"id": 12}, {"snippet": "Mara keeps"}, {"title": 7, "url": None}, {"text": "another"}, {"data": [1]}]
)
def test_whatever_the_metadata_holds_the_text_is_read_and_the_metadata_comes_back(metadata):
    document = read_document(as_document("Mara keeps a parrot.", metadata, "a"))
    assert (document.text, document.id, document.title, document.url) == ("Mara keeps a parrot.", "a", None, None)
    assert document.fields["metadata"] == metadata


def test_a_title_and_a_url_that_are_text_are_cited():
    document = read_document(as_document("Mara keeps a parrot.", {"title": "Mara", "url": "https://x.org"}))
    assert (document.id, document.title, document.url) == (None, "Mara", "https://x.org")
