"""Tells the scripts that part no words by spaces: Chinese, Japanese, Thai, Lao, Myanmar and Khmer."""

import re

# Characters of these scripts, as the inside of a regular expression's brackets.
UNSPACED = (
    "\u0e01-\u0e5b"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17dd"  # Khmer
    "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
_UNSPACED = re.compile(f"([{UNSPACED}])")


def is_unspaced(character: str) -> bool:
    """Return whether the character's script parts no words by spaces."""
    return _UNSPACED.fullmatch(character) is not None


def part_unspaced(text: str) -> str:
    """Return the text with a space around each character of these scripts, so that each counts as a word."""
    return _UNSPACED.sub(r" \1 ", text)
