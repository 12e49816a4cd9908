"""Documents over the wire: checked one by one, and the first bad one is told."""

import json

import pytest

from refrag.errors import InvalidRequest
from refrag.retrieval.base import Document
from refrag.retrieval.documents import parse_documents


def parse(*documents):
    return parse_documents([json.dumps(each) for each in documents])


def test_a_title_stands_above_the_text():
    assert parse({"id": "1", "text": "She keeps a parrot.", "title": "Mara", "metadata": {"year": 3}}) == [
        Document("1", "Mara\nShe keeps a parrot.", "Mara", {"year": 3})
    ]


def test_a_title_may_stand_alone():
    assert parse({"id": "1", "text": "", "title": "Mara"}) == [Document("1", "Mara", "Mara")]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("text", r"documents\[1\] is \"text\"; send an object with id, text, title, metadata"),
        ({"id": "b"}, r"documents\[1\] has no text"),
        ({"id": "b", "text": " \n"}, r"documents\[1\] has no text"),
        ({"id": "b", "text": "", "title": " "}, r"documents\[1\] has no text"),
        ({"id": "b", "title": "Mara"}, r"documents\[1\] has no text"),
        ({"text": "x"}, r"documents\[1\], id, is null; give a string of 1 to 512 bytes"),
        ({"id": "é" * 300, "text": "x"}, r"documents\[1\], id,"),
        ({"id": "b", "text": "x", "body": "y"}, r"documents\[1\] has 'body'; allowed are"),
        ({"id": "b", "text": "x", "title": 3}, r"documents\[1\] has the title 3"),
        ({"id": "b", "text": "x", "metadata": []}, r"documents\[1\] has the metadata \[\]"),
        ({"id": "b", "text": "x", "metadata": {"a-b": 1}}, r"documents\[1\], metadata, has the field 'a-b'"),
        (
            {"id": "b", "text": "x", "metadata": {"a": 10**400}},
            r"documents\[1\], metadata 'a', is 10{79}; give a finite",
        ),
        ({"id": "b", "text": "x", "metadata": {"a": [1]}}, r"documents\[1\], metadata 'a', is \[1\]"),
        ({"id": "a", "text": "x"}, r"documents\[1\] has the id 'a', which documents\[0\] has too"),
    ],
)
def test_a_bad_document_is_told_with_its_field(document, problem):
    with pytest.raises(InvalidRequest, match=problem):
        parse({"id": "a", "text": "fine"}, document)


def test_what_is_not_json_is_told():
    with pytest.raises(InvalidRequest, match=r"documents\[0\] is not JSON"):
        parse_documents(["{"])


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ('{"id": "\\ud800", "text": "x"}', "the lone surrogate"),
        ('{"id": "1", "text": "x\\udfff"}', "the lone surrogate"),
        ('{"id": "1", "text": "x", "metadata": {"lang": "\\ud800"}}', "the lone surrogate"),
        ('{"id": "1", "text": "x", "metadata": ' + "[" * 5000 + "]" * 5000 + "}", "not JSON"),
        ('{"id": "1", "text": "x", "metadata": {"year": ' + "9" * 5000 + "}}", "not JSON"),
    ],
)
def test_json_that_the_engine_cannot_keep_is_told(document, problem):
    with pytest.raises(InvalidRequest, match=rf"documents\[0\] .*{problem}"):
        parse_documents([document])
