"""Draws plots of result files. Axes name their units, and each plot shows what it is measured against."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perf.results import Report
from perf.ttft import name_way, stage_rows

BASELINE: dict[str, Any] = {"color": "#6b7280", "linestyle": "--"}
COLORS = ("#0b6e4f", "#c2410c", "#1d4ed8", "#a21caf", "#b45309", "#0e7490", "#be123c")
SIZE = (9.0, 4.2)
# A way's color says where its vectors are; its line says which fraction is expanded.
STORE_COLORS = {"cold": COLORS[1], "warm": COLORS[2], "hot": COLORS[0], "cold in int8": COLORS[3]}
FRACTION_LINES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))


def ttft(report: Report) -> Figure:
    """Draw milliseconds over context tokens, plain as the baseline; a panel for each chunk size."""
    figure, panels = _panels(report, "time to first token, ms")
    fractions = _fractions(report)
    for axes, rows in panels:
        for way, own in _series(rows, name_way).items():
            axes.plot(_lengths(own), [row["ttft"]["p50_ms"] for row in own], label=way, **_style(own[0], fractions))
    _finish_panels(figure, panels)
    return figure


def speedup(report: Report) -> Figure:
    """Draw plain over each way, and the paper's prediction for the same slots where nothing is expanded."""
    figure, panels = _panels(report, "times as fast as plain")
    fractions = _fractions(report)
    for axes, rows in panels:
        for way, own in _series([row for row in rows if "speedup" in row], name_way).items():
            axes.plot(_lengths(own), [row["speedup"] for row in own], label=way, **_style(own[0], fractions))
            if own[0]["store"] == "hot" and own[0]["expand_fraction"] == 0.0:
                style = {"linestyle": ":", "color": _style(own[0], fractions)["color"]}
                axes.plot(_lengths(own), [row["analytic"] for row in own], label="the paper's model, p=0", **style)
        axes.axhline(1.0, label="plain", **BASELINE)
    _finish_panels(figure, panels)
    return figure


def stages(report: Report) -> Figure:
    """Draw each way's stages at the longest context of stage_rows; plain's bar may be cut off at the plot's edge."""
    rows = stage_rows(report)
    longest = rows[0]["context_tokens"]
    figure, axes = _figure(f"milliseconds of a request with {longest:,} context tokens", "")
    names = [_way(row) for row in rows]
    left = [0.0] * len(rows)
    for stage in rows[0]["stages_ms"]:
        widths = [max(0.0, row["stages_ms"][stage]) for row in rows]
        axes.barh(names, widths, left=left, label=stage)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    compressed = [total for total, row in zip(left, rows, strict=True) if row["store"] != "plain"] or left
    axes.set_xlim(0, 1.15 * max(compressed))
    for index, (total, row) in enumerate(zip(left, rows, strict=True)):
        if row["store"] == "plain":
            axes.text(1.14 * max(compressed), index, f"to {total:,.0f} ms →", ha="right", va="center", color="white")
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def throughput(report: Report) -> Figure:
    """Draw requests per second at each level of load."""
    figure, axes = _figure("load", "requests per second")
    _pair_bars(axes, report, lambda way: way["throughput"])
    return figure


def latency(report: Report) -> Figure:
    """Draw the median time to first token, with its 99th percentile as a whisker."""
    figure, axes = _figure("load", "time to first token, ms (whisker: 99th percentile)")
    _pair_bars(
        axes,
        report,
        lambda way: way["ttft"]["p50_ms"],
        lambda way: max(0.0, way["ttft"]["p99_ms"] - way["ttft"]["p50_ms"]),
    )
    _logarithmic_times(axes)
    return figure


def peers(report: Report) -> Figure:
    """Draw milliseconds of each way, generate as the baseline."""
    figure, axes = _figure("context tokens", "time to first token, ms")
    labels = [f"{row['context_tokens']:,}" for row in report["rows"]]
    ways = list(report["rows"][0]["ttft"])
    width = 0.8 / len(ways)
    for index, name in enumerate(ways):
        places = [place + (index - (len(ways) - 1) / 2) * width for place in range(len(labels))]
        heights = [row["ttft"][name]["p50_ms"] for row in report["rows"]]
        color = BASELINE["color"] if name == "generate" else COLORS[(index - 1) % len(COLORS)]
        axes.bar(places, heights, width=0.95 * width, label=name, color=color)
    axes.set_xticks(range(len(labels)), labels)
    _logarithmic_times(axes)
    axes.legend(fontsize=8)
    return figure


def passages(report: Report) -> Figure:
    """Draw time to first token over prompt slots; the dashed line grows in proportion to the slots."""
    figure, axes = _figure("prompt slots", "time to first token, ms")
    slots = [row["prompt_slots"] for row in report["passages"]]
    times = [row["ttft"]["p50_ms"] for row in report["passages"]]
    axes.plot(slots, times, marker="o", color=COLORS[0], label="measured")
    rate = times[-1] / slots[-1]
    axes.plot(slots, [rate * slot for slot in slots], label="in proportion to the slots", **BASELINE)
    for row, slot, time in zip(report["passages"], slots, times, strict=True):
        axes.annotate(
            f"{row['passages']} passages", (slot, time), textcoords="offset points", xytext=(-14, 8), fontsize=8
        )
    # The numbers of passages grow by factors, so a logarithmic axis spaces them evenly.
    _logarithmic(axes, slots)
    _logarithmic_times(axes)
    axes.legend(fontsize=8)
    return figure


def callers(report: Report) -> Figure:
    """Draw requests per second over callers; the dashed line stays at the first number of callers."""
    figure, axes = _figure("callers at a time", "requests per second")
    counts = [row["callers"] for row in report["callers"]]
    axes.plot(counts, [row["throughput"] for row in report["callers"]], marker="o", color=COLORS[0], label="measured")
    axes.axhline(report["callers"][0]["throughput"], label=f"{counts[0]} at a time", **BASELINE)
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def prefill(report: Report) -> Figure:
    """Draw plain over each way in process, with the paper's model."""
    figure, axes = _figure("context tokens", "times as fast as plain")
    rows = [row for row in report["rows"] if "speedup" in row and row["expand_fraction"] == 0.0]
    for index, (name, own) in enumerate(
        _series(rows, lambda row: f"k={row['chunk_size']}, batch {row['batch']}").items()
    ):
        lengths, color = [row["context_tokens"] for row in own], COLORS[index % len(COLORS)]
        axes.plot(lengths, [row["speedup"] for row in own], marker="o", color=color, label=f"{name}, cached")
        not_cached = [row["speedup_not_cached"] for row in own]
        axes.plot(lengths, not_cached, marker="x", color=color, linestyle="-.", label=f"{name}, not cached")
        axes.plot(
            lengths, [row["analytic"] for row in own], linestyle=":", color=color, label=f"{name}: the paper's model"
        )
    axes.axhline(1.0, label="plain", **BASELINE)
    _logarithmic(axes, sorted({row["context_tokens"] for row in rows}))
    axes.legend(fontsize=7, ncols=2)
    return figure


def engine(report: Report) -> Figure:
    """Draw the engine's tokens per second over each other method's."""
    figure, axes = _figure("requests at a time", "times the tokens per second of")
    name, decoder = next(iter(report["decoders"].items()))
    rows = decoder["throughput"]
    counts = [row["concurrency"] for row in rows]
    for index, other in enumerate(rows[0]["engine_against"]):
        ratios = [row["engine_against"][other] for row in rows]
        axes.plot(counts, ratios, marker="o", color=COLORS[index], label=f"{name}: {other}")
    axes.axhline(1.0, label="as fast", **BASELINE)
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    return figure


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    # Not by pyplot, which keeps every figure until it is closed.
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLORS)
    _label(axes, x, y)
    return figure, axes


def _panels(report: Report, y: str) -> tuple[Figure, list[tuple[Axes, list[Report]]]]:
    """Return a figure, and a panel for each chunk size with the rows of that size."""
    by_size = _series(report["rows"], lambda row: f"k = {row['chunk_size']}")
    figure = Figure(figsize=SIZE, layout="constrained")
    drawn = figure.subplots(1, len(by_size), sharey=True, squeeze=False)[0]
    panels = list(zip(drawn, by_size.values(), strict=True))
    for (axes, _), size in zip(panels, by_size, strict=True):
        _label(axes, "context tokens", y if axes is drawn[0] else "")
        axes.set_title(size, fontsize=10)
    return figure, panels


def _finish_panels(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Report]]]) -> None:
    """Set logarithmic axes, and one legend for all panels below them."""
    for axes, rows in panels:
        _logarithmic(axes, sorted({row["context_tokens"] for row in rows}))
        axes.tick_params(axis="x", labelsize=7)
    _logarithmic_times(panels[0][0])
    handles = {label: line for axes, _ in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), fontsize=8, ncols=4, loc="outside lower center")


def _style(row: Report, fractions: Sequence[float]) -> dict[str, Any]:
    if row["store"] == "plain":
        return {"marker": "o", "markersize": 4, **BASELINE}
    store = row["store"] if row["encoder"] == "fp32" else f"{row['store']} in {row['encoder']}"
    line = FRACTION_LINES[fractions.index(row["expand_fraction"]) % len(FRACTION_LINES)]
    return {"marker": "o", "markersize": 4, "color": STORE_COLORS.get(store, COLORS[-1]), "linestyle": line}


def _fractions(report: Report) -> list[float]:
    """Return the fractions that any way but plain expands, in order."""
    return sorted({row["expand_fraction"] for row in report["rows"] if row["store"] != "plain"})


def _lengths(rows: Sequence[Report]) -> list[int]:
    return [row["context_tokens"] for row in rows]


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _series(rows: Sequence[Report], name: Callable[[Report], str]) -> dict[str, list[Report]]:
    """Group rows by name, in their order."""
    series: dict[str, list[Report]] = {}
    for row in rows:
        series.setdefault(name(row), []).append(row)
    return series


def _way(row: Report) -> str:
    if row["store"] == "plain":
        return f"plain (server of k={row['chunk_size']})"
    return f"k={row['chunk_size']}, {name_way(row)}"


def _logarithmic(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()


def _logarithmic_times(axes: Axes) -> None:
    """Set a logarithmic time axis, with its numbers written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _pair_bars(
    axes: Axes,
    report: Report,
    value: Callable[[Report], float],
    whisker: Callable[[Report], float] | None = None,
) -> None:
    """Draw compressed beside plain, the baseline."""
    labels = [row["load"] for row in report["rows"]]
    colors = {"compressed": COLORS[0], "plain": BASELINE["color"]}
    for index, (name, color) in enumerate(colors.items()):
        places = [place + (index - 0.5) * 0.4 for place in range(len(labels))]
        ways: list[Any] = [row[name] for row in report["rows"]]
        errors = None if whisker is None else [[0.0] * len(ways), [whisker(way) for way in ways]]
        axes.bar(places, [value(way) for way in ways], width=0.38, yerr=errors, capsize=3, label=name, color=color)
    axes.set_xticks(range(len(labels)), labels)
    axes.legend(fontsize=8)
