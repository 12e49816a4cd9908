"""The corpus of the demo: the reference of the language that every Python brings, cut into passages."""

from refrag.data.stdlib import topic_texts
from refrag_client.corpus import cut_text


def read_documentation() -> list[str]:
    """Return the passages of all topics, each headed by its topic."""
    return [f"{topic}\n{text}" for topic, whole in sorted(topic_texts().items()) for text in cut_text(whole)]
