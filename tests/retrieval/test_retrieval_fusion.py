"""Reciprocal rank fusion."""

import pytest

from refrag.retrieval.fusion import fuse_rankings


def test_an_id_in_both_rankings_beats_the_first_of_one():
    fused = dict(fuse_rankings([["a", "b", "c"], ["d", "b"]]))
    assert max(fused, key=fused.get) == "b"
    assert fused["b"] == pytest.approx(2 / 62)


def test_equal_scores_come_in_the_order_of_their_ids():
    assert [each for each, _ in fuse_rankings([["z"], ["a"]])] == ["a", "z"]
    assert fuse_rankings([[], []]) == []
