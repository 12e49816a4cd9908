"""The benchmark of 8 bits reads all of a text alike, and its table says what gained and what it cost."""

from perf.int8 import draw_windows, markdown


def test_windows_are_equally_long_and_from_all_over_the_text():
    windows = draw_windows(range(1000), 100, 4)
    assert [(int(ids[0]), int(ids[-1])) for ids in windows] == [(0, 99), (225, 324), (450, 549), (675, 774)]
    assert len(draw_windows(range(350), 100, 4)) == 3


def test_the_table_has_both_ways_and_their_ratio():
    text = markdown(
        {
            "first_tokens": [{"slots": 2048, "ms": {"none": 1000.4, "int8": 500.0}, "speedup": 2.0}],
            "decoding": [{"callers": 8, "tokens_per_second": {"none": 100.0, "int8": 310.0}, "speedup": 3.1}],
            "text": {
                "num_tokens": 16384,
                "perplexity": {"none": 9.25, "int8": 9.3},
                "agreement": 0.951,
                "divergence": 0.0041,
            },
        }
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["first token of 2,048 slots", "1,000 ms", "500 ms", "2.00×"] in cells
    assert ["tokens/s, 8 callers", "100.0", "310.0", "3.10×"] in cells
    assert "9.25 in FP32, 9.30 in 8 bits" in text
    assert "95.1% of them, and the divergence 0.0041 nats" in text
