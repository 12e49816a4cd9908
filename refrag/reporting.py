"""Tables for people, as Markdown that reads well unrendered too."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]], num_text: int = 1) -> str:
    """Return a Markdown table; its first `num_text` columns are text, to the left, the others figures, to the right."""
    # Imported here, since who measures on a bare machine draws no table.
    from tabulate import tabulate

    alignment = ["left"] * num_text + ["right"] * (len(header) - num_text)
    return tabulate(rows, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)
