"""Cleaning and comparing the text that people write.

Knows nothing of prompts, tokens or NPCs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Cf holds zero-width characters, bidirectional controls and soft hyphens; Cc controls, Cs lone
# surrogates (which no tokenizer can encode), Co private use, Cn unassigned.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# Line and paragraph separators are line breaks in effect; so are these controls.
_BREAKS = frozenset("\n\r\t\v\f\x85\u2028\u2029")
# Cannot be seen but are letters or marks by category: Hangul fillers, combining grapheme joiner.
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u034f")
_SPACES = re.compile(r"\s+")
_LETTER = r"[^\W\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"  # of any script but Korean
_HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")


def clean(text: str) -> str:
    """Return `text` in NFKC, without control, zero-width or surrogate characters, on one line.

    Runs twice over the characters because NFKC can turn a kept character into a dropped one and the
    removal of a joiner can let two characters compose.
    """
    for _ in range(2):
        text = unicodedata.normalize("NFKC", "".join(map(_visible, text)))
    return _SPACES.sub(" ", text).strip()


def _visible(char: str) -> str:
    if char in _BREAKS:
        return " "
    if char in _INVISIBLE or unicodedata.category(char) in _DROPPED_CATEGORIES:
        return ""
    return char


def fold(text: str) -> str:
    """Return the form in which keywords, item names and repeated utterances are compared."""
    return clean(text).casefold()


def fold_id(name: str) -> str:
    """Return an item, action or state name in the form `gold_necklace`, however it was typed."""
    return re.sub(r"[\s\-_]+", "_", fold(name)).strip("_")


def has_words(text: str) -> bool:
    """Tell whether anything in `text` could be meant as speech: one letter or digit is enough."""
    return any(unicodedata.category(char)[0] in "LN" for char in text)


def hangul_share(text: str) -> float:
    """Return which share of the letters in `text` is Korean, 0.0 to 1.0 (0.0 without letters)."""
    letters = sum(1 for char in text if char.isalpha())
    return len(_HANGUL.findall(text)) / letters if letters else 0.0


def language_of(text: str) -> str:
    """Return "ko" where at least a third of the letters are Korean, else "en"."""
    return "ko" if hangul_share(text) >= 1 / 3 else "en"


def contains_keyword(text: str, keywords: Iterable[str]) -> str | None:
    """Return the first keyword that stands in `text`, or None.

    Latin keywords match whole words ("art" is not in "heart") with a plural or possessive ending
    allowed, or a Korean particle ("photo를"); Korean ones match anywhere, because particles are
    written onto the word.
    """
    folded = fold(text)
    for keyword in keywords:
        needle = fold(keyword)
        if not needle:
            continue
        if _HANGUL.search(needle):
            if needle in folded:
                return keyword
        elif re.search(rf"(?<!{_LETTER}){re.escape(needle)}(?:s|es|'s)?(?!{_LETTER})", folded):
            return keyword
    return None
