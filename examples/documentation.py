"""The corpus of the demo: the reference of the language that every Python brings, cut into passages.

It is what `help("assert")` shows, 66,000 words in Python 3.11, about half of which read as prose.
"""

from pydoc_data.topics import topics

from refrag_client.corpus import cut_text


def read_documentation() -> list[str]:
    """Return the passages of all topics, each headed by its topic."""
    return [f"{topic}\n{text}" for topic in sorted(topics) for text in cut_text(topics[topic])]
