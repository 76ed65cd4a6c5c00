"""Cleaning, folding and keyword matching."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import (
    clean,
    contains_keyword,
    fold,
    fold_id,
    hangul_share,
    has_words,
    language_of,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
quick = settings(deadline=None, database=None, max_examples=300)


@quick
@given(ANY_TEXT)
def test_clean_twice_is_clean_once(text):
    once = clean(text)
    assert clean(once) == once


@quick
@given(ANY_TEXT)
def test_clean_leaves_one_line_that_utf8_can_carry(text):
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert not {unicodedata.category(char) for char in cleaned} & {"Cc", "Cf", "Cs", "Co"}


@quick
@given(ANY_TEXT)
def test_fold_and_fold_id_and_shares_take_anything(text):
    assert fold_id(fold_id(text)) == fold_id(text)
    assert 0.0 <= hangul_share(text) <= 1.0
    assert language_of(text) in ("en", "ko")
    assert isinstance(has_words(text), bool)


@quick
@given(ANY_TEXT, st.lists(ANY_TEXT, max_size=4))
def test_contains_keyword_returns_one_of_the_keywords_or_none(text, keywords):
    assert contains_keyword(text, keywords) in (*keywords, None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("in\u200bsult", "insult"),
        ("in\u00adsult", "insult"),
        ("\ufeffhello\u202e", "hello"),
        ("ｈｅｌｌｏ　ｗｏｒｌｄ", "hello world"),
        ("ﬁne", "fine"),
        ("half \ud83d emoji", "half emoji"),
        ("a\r\nb\tc\u2028d\x85e", "a b c d e"),
        ("bell\x07\x00", "bell"),
        ("사\u3164진", "사진"),
        (unicodedata.normalize("NFD", "사진"), "사진"),
        ("   ", ""),
        ("\U0001f600 ok", "\U0001f600 ok"),
    ],
)
def test_clean_shows_what_a_reader_would_see(raw, expected):
    assert clean(raw) == expected


def test_typed_prompt_marker_stays_plain_text():
    assert clean("<STA\u200bTE>") == "<STATE>"


def test_a_megabyte_of_text_is_cleaned_and_searched():
    text = "가\u200b a\u0301" * 200_000
    cleaned = clean(text)
    assert cleaned.startswith("가 á가 á")
    assert contains_keyword(cleaned, ["nowhere", "어디에도"]) is None


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("Show me your art!", "art"),
        ("two swords", "sword"),
        ("old boxes", "box"),
        ("the sword's edge", "sword"),
        ("THE SWORD", "sword"),
        ("ｓｗｏｒｄ", "sword"),
        ("you s\u200bword", "sword"),
        ("gold necklace, please", "gold necklace"),
        ("이 사진을 보세요", "사진"),
        ("그때의기억이나요", "기억"),
        ("이 photo를 보세요", "photo"),
        ("그photo", "photo"),
        (unicodedata.normalize("NFD", "사진입니다"), "사진"),
        ("what (really)?", "(really)"),
        ("a+b", "a+b"),
    ],
)
def test_keyword_is_found(text, keyword):
    assert contains_keyword(text, ["elsewhere", keyword]) == keyword


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("my heart", "art"),
        ("artful", "art"),
        ("swordfish", "sword"),
        ("snake_art", "art"),
        ("art2", "art"),
        ("사 진", "사진"),
        ("anything", ""),
        ("anything", "\u200b"),
        ("aXb", "a.b"),
        ("", "art"),
    ],
)
def test_keyword_is_not_found(text, keyword):
    assert contains_keyword(text, [keyword]) is None


def test_first_keyword_of_the_list_wins():
    assert contains_keyword("photo and sword", ["sword", "photo"]) == "sword"


@pytest.mark.parametrize(
    "typed",
    ["gold_necklace", "Gold Necklace", "gold-necklace", " GOLD  necklace ", "gold_\u200b_necklace"],
)
def test_fold_id_takes_names_however_typed(typed):
    assert fold_id(typed) == "gold_necklace"


def test_fold_ignores_case_and_width():
    assert fold("Straße") == fold("STRASSE") == fold("ｓｔｒａｓｓｅ")


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "\u200b", "\U0001f600"])
def test_text_without_letters_or_digits_has_no_words(text):
    assert not has_words(text)


@pytest.mark.parametrize("text", ["a", "7", "네", "...ok"])
def test_one_letter_or_digit_is_speech(text):
    assert has_words(text)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello there", "en"),
        ("안녕하세요", "ko"),
        ("Jason을 아세요?", "ko"),
        ("My name is 실비아, nice to meet you", "en"),
        ("", "en"),
        ("12345 !!", "en"),
        ("ㅋㅋㅋ", "ko"),
    ],
)
def test_language_goes_by_the_share_of_korean_letters(text, language):
    assert language_of(text) == language
