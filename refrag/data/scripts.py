"""Words in any script, also where none are parted by spaces: Chinese, Japanese, Thai, Lao, Myanmar and Khmer."""

import re
from unicodedata import category

# Characters of these scripts, as the inside of a regular expression's brackets.
UNSPACED = (
    "\u0e01-\u0e5b"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17dd"  # Khmer
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
_UNSPACED = re.compile(f"([{UNSPACED}])")
# Letters, marks on them, and digits.
WORD_CATEGORIES = "LMN"


def is_unspaced(character: str) -> bool:
    """Return whether the character's script parts no words by spaces."""
    return _UNSPACED.fullmatch(character) is not None


def part_unspaced(text: str) -> str:
    """Return the text with a space around each character of these scripts, so that each counts as a word."""
    return _UNSPACED.sub(r" \1 ", text)


def split_words(text: str) -> list[str]:
    """Return the words without punctuation; a single character is one where no spaces part them."""
    letters = "".join(one if category(one)[0] in WORD_CATEGORIES else " " for one in text)
    return part_unspaced(letters).split()


def count_words(text: str) -> float:
    """Return about how many words the text has: two characters are one where no spaces part them."""
    return sum(0.5 if is_unspaced(word) else 1.0 for word in part_unspaced(text).split())


def is_inside_word(text: str, place: int) -> bool:
    """Return whether a word goes on across the border before the character at `place`, which spaces would part."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if category(after)[0] == "M":
        return True
    are_letters = category(before)[0] in WORD_CATEGORIES and category(after)[0] in WORD_CATEGORIES
    return are_letters and not is_unspaced(before) and not is_unspaced(after)
