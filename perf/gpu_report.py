"""Draws what perf.gpu has measured, which itself runs where nothing is installed that draws tables."""

from perf.results import Report
from refrag.reporting import table

# Of a row of perf.prefill -> its heading.
SPEEDUPS = {"speedup": "cached", "speedup_not_cached": "not cached", "analytic": "analytic"}


def prefill_table(report: Report) -> str:
    """Return first tokens at the paper's geometry: the plain prompt's, and for each compressed one what it saves."""
    rows = []
    for part in report["parts"].values():
        for row in part.get("rows", ()):
            way = "plain" if row["chunk_size"] is None else f"k={row['chunk_size']}, p={row['expand_fraction']:g}"
            cells = [part["shape"], row["context_tokens"], row["batch"], way, row["prompt_slots"]]
            cells.append(f"{row['ttft']['p50_ms']:.0f} ms")
            cells += [f"{row[name]:.1f}×" if name in row else "" for name in SPEEDUPS]
            rows.append([*cells, f"{100 * row['share_of_peak']:.0f}%"])
    headers = ["decoder", "context tokens", "batch", "way", "slots", "first token", *SPEEDUPS.values(), "of the peak"]
    return table(headers, rows, num_text=1)


def find_row(report: Report, shape: str, context_tokens: int, chunk_size: int, expand_fraction: float) -> Report:
    """Return the row of one prompt of this length; raise KeyError if it was not measured."""
    wanted = (context_tokens, 1, chunk_size, expand_fraction)
    for part in report["parts"].values():
        for row in part.get("rows", ()) if part.get("shape") == shape else ():
            if (row["context_tokens"], row["batch"], row["chunk_size"], row["expand_fraction"]) == wanted:
                return row
    raise KeyError(
        f"no row of {shape}, {context_tokens} tokens, k={chunk_size}, p={expand_fraction:g}; run make gpu to its end"
    )
