"""Prints answers: its text as it comes, what it took, and what it rests on."""

import sys
from collections.abc import Iterable, Sequence

from refrag_client.answer import Answer, Citation, Piece

# Characters of a cited span that are shown.
MOST_SHOWN = 160


def print_pieces(pieces: Iterable[Piece]) -> None:
    """Print the text as it comes, and end the line; after some text an error stands on a line of its own too."""
    has_text = False
    try:
        for piece in pieces:
            print(piece.text, end="", flush=True)
            has_text = has_text or bool(piece.text)
    except BaseException:
        if has_text:
            print(flush=True)
        raise
    print(flush=True)


def print_summary(answer: Answer) -> None:
    """Print what the answer took, on stderr, and what was left out of its conversation."""
    print(_summarise(answer), file=sys.stderr)
    if answer.statistics.num_cut_turns:
        print(
            f"the window is full: the first {answer.statistics.num_cut_turns} turns of the conversation are left out",
            file=sys.stderr,
        )


def print_citations(answer: Answer, passages: Sequence[str]) -> None:
    """Print the spans that the decoder read in full, with their passages' share of the policy's weight.

    passages: those sent; those that the server retrieved come with the answer.
    """
    texts = passages or [passage.text for passage in answer.passages]
    if not answer.citations:
        print("no passage was read in full; raise --expand-fraction to have some expanded")
    for citation in answer.citations:
        share = answer.passage_weights[citation.passage]
        place = f"passage {citation.passage}, characters {citation.start} to {citation.end}"
        print(f"{place}, {share:.0%} of the weight: {_quote(citation, texts)}")


def format_value(value: float | None, pattern: str) -> str:
    return "unknown" if value is None else pattern.format(value)


def _summarise(answer: Answer) -> str:
    statistics = answer.statistics
    ttft_ms = None if answer.ttft_seconds is None else 1000 * answer.ttft_seconds
    raised = f" for a budget of {statistics.chunk_budget}" if statistics.is_raised else ""
    return (
        f"{statistics.num_output_tokens} output tokens · {statistics.context_tokens} context tokens"
        f" · {statistics.num_chunks} chunks, {statistics.num_stored_chunks} of them stored,"
        f" {statistics.num_expanded_chunks} expanded{raised}"
        f" · {statistics.prompt_slots} prompt slots · TTFT {format_value(ttft_ms, '{:.1f} ms')}"
    )


def _quote(citation: Citation, passages: Sequence[str]) -> str:
    text = " ".join(passages[citation.passage][citation.start : citation.end].split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
