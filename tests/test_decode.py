"""Choosing tokens, text without half characters, and tidying a line."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import Sampler, Sampling, TextStream, stops_line, tidy, whole_sentences
from tests.fakes import tiny_tokenizer

GREEDY = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=20, seed=0)


def sampling(**values: Any) -> Sampling:
    return Sampling(**{**vars(GREEDY), **values})


@functools.cache
def tokenizer() -> Any:
    return tiny_tokenizer()


def byte_ids(raw: bytes) -> list[int]:
    """Return the ids of single bytes, which need not be whole characters."""
    letters = [_BYTE_TO_LETTER[code] for code in raw]
    return list(tokenizer().convert_tokens_to_ids(letters))


def _byte_letters() -> dict[int, str]:
    """Return GPT-2's table: printable bytes stand for themselves, the rest from U+0100 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {code: chr(code) for code in own}
    others = (code for code in range(256) if code not in table)
    return table | {code: chr(256 + index) for index, code in enumerate(others)}


_BYTE_TO_LETTER = _byte_letters()


def pushed(raw: bytes) -> list[str | None]:
    stream = TextStream(tokenizer())
    return [stream.push(token) for token in byte_ids(raw)]


# --- the sampler ---------------------------------------------------------------------------------


def test_greedy_takes_the_highest_and_ignores_the_seed():
    logits_V = torch.tensor([0.0, 3.0, 2.0])
    for seed in range(5):
        assert Sampler(sampling(seed=seed), []).choose(logits_V, []) == 1


def draws(seed: int, **values: Any) -> list[int]:
    sampler = Sampler(sampling(temperature=1.0, seed=seed, **values), [])
    return [sampler.choose(torch.zeros(50), []) for _ in range(20)]


def test_a_seed_gives_the_same_draws_and_another_seed_others():
    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_one_line_does_not_disturb_another_or_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draws(1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0, 100.0])
def test_suppressed_ids_are_never_chosen_however_likely(temperature):
    logits_V = torch.zeros(6)
    logits_V[[1, 4]] = 1e4
    sampler = Sampler(sampling(temperature=temperature, seed=3), [1, 4])
    assert not {sampler.choose(logits_V, []) for _ in range(200)} & {1, 4}


def test_top_p_keeps_the_likely_ones():
    logits_V = torch.tensor([5.0, 4.9, -5.0, -5.0])
    sampler = Sampler(sampling(temperature=1.0, top_p=0.9, seed=1), [])
    assert {sampler.choose(logits_V, []) for _ in range(200)} == {0, 1}


def test_low_temperature_is_near_to_greedy():
    logits_V = torch.tensor([1.0, 0.0])
    counts = {}
    for temperature in (0.1, 2.0):
        sampler = Sampler(sampling(temperature=temperature, seed=1), [])
        counts[temperature] = Counter(sampler.choose(logits_V, []) for _ in range(300))
    assert counts[0.1][1] == 0
    assert counts[2.0][1] > 50


def test_repetition_penalty_counts_what_was_generated():
    logits_V = torch.tensor([2.0, 1.9])
    sampler = Sampler(sampling(repetition_penalty=1.5), [])
    assert sampler.choose(logits_V, []) == 0
    assert sampler.choose(logits_V, [0]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        Sampler(GREEDY, []).choose(torch.tensor([0.0, bad]), [])


def test_logits_are_left_as_they_were():
    logits_V = torch.tensor([1.0, 2.0, 3.0])
    Sampler(sampling(temperature=0.5, repetition_penalty=1.5), [2]).choose(logits_V, [1])
    assert logits_V.tolist() == [1.0, 2.0, 3.0]


# --- text ----------------------------------------------------------------------------------------


def test_korean_and_emoji_come_whole():
    text = "안녕 🙂!"
    shown = [one for one in pushed(text.encode()) if one is not None]
    assert shown == ["안", "안녕", "안녕 ", "안녕 🙂", "안녕 🙂!"]


def test_incomplete_character_at_the_end_is_not_shown():
    assert pushed("아🙂".encode()[:-1]) == [None, None, "아", None, None, None]


def test_bytes_that_never_become_a_character_are_left_out():
    assert pushed(b"a\xec\x95b")[-1] == "ab"


@given(st.text(max_size=12))
@settings(max_examples=60)
def test_text_grows_by_whole_characters_to_all_of_it(text):
    # The replacement character itself cannot be told from a broken one.
    text = text.replace("\ufffd", "")
    shown = [one for one in pushed(text.encode()) if one is not None]
    assert all(text.startswith(one) for one in shown)
    assert shown == sorted(shown, key=len)
    assert (shown or [""])[-1] == text


@given(st.binary(max_size=12))
@settings(max_examples=60)
def test_random_bytes_show_no_broken_character(raw):
    assert not any("\ufffd" in one for one in pushed(raw) if one is not None)


def test_control_tokens_are_not_shown():
    stream = TextStream(tokenizer())
    assert stream.push(tokenizer().eos_token_id) == ""
    assert stream.push(byte_ids(b"a")[0]) == "a"


# --- the line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Hello.", "Hello."),
        ("  \n Hello.\nPlayer: more", "Hello."),
        ("Mira: Hello.", "Hello."),
        ("mira : Hello.", "Hello."),
        ("NPC: Hello.", "Hello."),
        ("Mirabel: Hello.", "Mirabel: Hello."),
        ('"Hello."', "Hello."),
        ('"Hello', "Hello"),
        ("“Hello.”", "Hello."),
        ("'Hello.'", "Hello."),
        ("'Tis a cold day.", "'Tis a cold day."),
        ('"Stop," she says. "Go."', '"Stop," she says. "Go."'),
        ('Mira: "Hello."', "Hello."),
        ("Hello \t  there", "Hello there"),
        ("안녕하세요.\n", "안녕하세요."),
        ('"', ""),
        ("'", "'"),
        ("", ""),
    ],
)
def test_tidy(raw, expected):
    assert tidy(raw, "Mira") == expected


def test_tidy_leaves_out_what_cannot_be_seen():
    controls = "".join(map(chr, [*range(32), *range(127, 160)]))
    assert tidy(f"Take \x00it\x07, then{controls.replace(chr(10), '')}.", "") == "Take it, then ."


def test_tidy_takes_a_name_as_it_is_written_and_none_for_none():
    assert tidy("M. (old)*: Hello.", "M. (old)*") == "Hello."
    assert tidy(":) Hello.", "") == ":) Hello."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello. I am", "Hello."),
        ("Hello! Who are you? I", "Hello! Who are you?"),
        ('He said "Go." Then', 'He said "Go."'),
        ("안녕하세요. 저는", "안녕하세요."),
        ("좋아。", "좋아。"),
        ("It costs 3.5 gold", "It costs 3.5 gold"),
        ("no end", "no end"),
        ("Well… and", "Well…"),
        ("", ""),
    ],
)
def test_whole_sentences(text, expected):
    assert whole_sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "over"), [("Hello", False), ("\n\nHello", False), ("Hello\n", True), ("", False)]
)
def test_line_is_over_at_a_break_after_its_first_word(text, over):
    assert stops_line(text) is over


def test_trailing_break_alone_does_not_begin_a_line():
    assert not stops_line(" \n ")


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("(smiling) I am glad. (nods to one", "I am glad."),
        ("*sighs* Not today.", "Not today."),
        ("[She waits] Come in. (shuts the door) Sit.", "Come in. Sit."),
        ("(only a gesture)", ""),
    ],
)
def test_stage_directions_are_not_spoken(raw: str, spoken: str) -> None:
    assert tidy(raw, "Silvia") == spoken
