"""Training rows: reading them, and what the rows that ship must hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.embed import SentenceEmbedder
from engine.gate import unmet_facts, unmet_standing
from engine.npc import NPC, NPCRegistry, Temper, build_registry, parse_npc
from engine.prompt import MARKERS
from engine.schema import FLAGS, MAX_NAME, Delta, SessionState
from engine.text import clean, fold, has_words, language_of
from engine.weights import resolve_embedder
from tests.engines import KEEPER, keeper_data
from tests.fakes import WordEmbedder
from training.check import Placed, commonest_frame, distinct_2, problems, read_placed, write_labels
from training.items import is_named, is_promised, read_words
from training.oracle import label_rows, training_registry
from training.rows import DATA_DIR, ROWS_REMEMBERED, Row, RowError, read_rows
from training.rubric import ACTS, judged_delta

LEAST_ROWS = 2000
LEAST_POSITIVES = 100


def row(**fields: Any) -> dict[str, Any]:
    return {
        "npc_id": "smith",
        "lang": "en",
        "tags": {"quest_stage": "start", "trust": 0.1, "relationship": 0},
        "player_utterance": "Hello.",
        "response": "Good day.",
        "delta": {"trust": 0.02, "relationship": 0.0},
        **fields,
    }


def write(folder: Path, *lines: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


# Reading


def test_row_with_the_least_fields_is_read(tmp_path):
    (read,) = read_rows([write(tmp_path, row())])
    assert (read.flag, read.context, read.exchanges, read.group) == ((), (), (), None)
    assert read.tags.npc_mood == "neutral"


def test_context_becomes_exchanges(tmp_path):
    context = [
        {"role": role, "text": text}
        for role, text in zip(["player", "npc"] * 2, "abcd", strict=True)
    ]
    (read,) = read_rows([write(tmp_path, row(context=context))])
    assert read.exchanges == (("a", "b"), ("c", "d"))


def test_rows_come_in_order_of_file_name_and_line(tmp_path):
    second = write(tmp_path, row(group="3"), name="b.jsonl")
    first = write(tmp_path, row(group="1"), "", "  ", row(group="2"))
    assert [one.group for one in read_rows([second, first])] == ["1", "2", "3"]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85"])
def test_line_separator_inside_a_text_does_not_cut_the_row(tmp_path, char):
    (read,) = read_rows([write(tmp_path, row(player_utterance=f"a{char}b"))])
    assert read.player_utterance == f"a{char}b"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"npc_id": ""}, "npc_id"),
        ({"lang": "fr"}, "lang"),
        ({"tags": {"quest_stage": "start", "trust": 0.1}}, "tags.relationship"),
        ({"tags": {"quest_stage": "s", "trust": 2, "relationship": 0}}, "tags.trust"),
        ({"tags": {"quest_stage": "s", "trust": True, "relationship": 0}}, "tags.trust"),
        ({"player_utterance": ""}, "player_utterance"),
        ({"response": ""}, "response"),
        ({"delta": {"trust": 1.1}}, "delta.trust"),
        ({"delta": {"trsut": 0.1}}, "delta.trsut"),
        ({"flag": ["fly"]}, "flag"),
        ({"flag": "give_item"}, "flag"),
        ({"flags": []}, "flags"),
        ({"context": [{"role": "npc", "text": "a"}]}, "context"),
        ({"context": [{"role": "player", "text": "a"}]}, "context"),
        ({"context": [{"role": "system", "text": "a"}]}, "context.0.role"),
        ({"player_state": {"items": "ore"}}, "player_state.items"),
        ({"player_state": {"game_state": {"lit": []}}}, "player_state.game_state.lit"),
    ],
)
def test_fault_names_file_line_and_field(tmp_path, fields, place):
    path = write(tmp_path, row(), "", row(**fields))
    with pytest.raises(RowError) as caught:
        read_rows([path])
    assert str(caught.value).startswith(f"a.jsonl:3: {place}: ")


def test_missing_field_is_named(tmp_path):
    lacking = {name: value for name, value in row().items() if name != "response"}
    with pytest.raises(RowError, match=r"^a\.jsonl:1: response: is required$"):
        read_rows([write(tmp_path, lacking)])


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"a": ' + "9" * 5000 + "}", "[" * 100_000])
def test_line_that_is_no_row_is_named(tmp_path, line):
    with pytest.raises(RowError, match=r"^a\.jsonl:2: "):
        read_rows([write(tmp_path, row(), line)])


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    for name in ("latin.jsonl", "missing.jsonl"):
        with pytest.raises(RowError, match=f"^{name}: cannot be read"):
            read_rows([tmp_path / name])


def test_no_rows_at_all_is_an_error(tmp_path):
    with pytest.raises(RowError, match="no rows"):
        read_rows([write(tmp_path, "")])


# What ships


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows()


@pytest.fixture(scope="module")
def npcs() -> NPCRegistry:
    return training_registry(DATA_DIR.parent.parent / "npc_configs")


def where(one: Row) -> str:
    return f"{one.npc_id} {one.tags.quest_stage}: {one.player_utterance[:60]}"


def lacking(npc: NPC, flag: str, one: Row) -> list[str]:
    """Return what the gate would miss in the row's state, but for what must be said."""
    rule = npc.stage(one.tags.quest_stage).flags.get(flag)
    if rule is None:
        return ["a rule"]
    state = SessionState(
        **one.tags.model_dump(exclude={"trust", "relationship", "location"}),
        location=one.tags.location or npc.defaults.location,
        style=npc.persona.style[:MAX_NAME],
        standing=Delta(trust=one.tags.trust, relationship=one.tags.relationship),
        items=one.player_state.items,
        actions=one.player_state.actions,
        game_state=one.player_state.game_state,
    )
    return [*unmet_facts(rule.when, state), *unmet_standing(rule.when, state)]


def test_there_are_enough_rows_in_both_languages(rows):
    assert len(rows) >= LEAST_ROWS
    languages = Counter(one.lang for one in rows)
    assert set(languages) == {"en", "ko"}
    assert 0.18 <= languages["ko"] / len(rows) <= 0.25


def test_every_npc_has_rows_and_every_row_an_npc_and_a_stage(rows, npcs):
    assert {one.npc_id for one in rows} == set(npcs.by_id)
    astray = [
        where(one)
        for one in rows
        if one.tags.quest_stage not in npcs.get(one.npc_id, one.lang).quest_stages
    ]
    assert astray == []


def test_every_flag_has_positives_and_most_rows_of_it_are_negative(rows):
    positives = Counter(flag for one in rows for flag in one.flag)
    assert set(positives) == set(FLAGS)
    assert min(positives.values()) >= LEAST_POSITIVES
    assert max(positives.values()) < len(rows) / 2


def test_no_row_lists_a_flag_twice(rows):
    assert [where(one) for one in rows if len(set(one.flag)) < len(one.flag)] == []


def test_every_listed_flag_is_granted_by_its_npc_in_that_state(rows, npcs):
    faults = [
        f"{where(one)}: {flag}: {fault}"
        for one in rows
        for flag in one.flag
        for fault in lacking(npcs.get(one.npc_id, one.lang), flag, one)
    ]
    assert faults == []


def test_some_rows_have_everything_but_fire_nothing(rows, npcs):
    """Rows where only the words decide: without them a head could learn the gate alone."""
    silent = []
    for one in rows:
        npc = npcs.get(one.npc_id, one.lang)
        flags = npc.stage(one.tags.quest_stage).flags
        if not one.flag and any(not lacking(npc, flag, one) for flag in flags):
            silent.append(one)
    assert silent


def test_a_third_of_the_rows_stand_in_minimal_pairs(rows):
    groups = Counter((one.npc_id, one.group) for one in rows if one.group)
    assert sum(count for count in groups.values() if count > 1) >= 0.3 * len(rows)


def test_rows_are_written_and_not_stamped_out(rows):
    assert distinct_2([one.response for one in rows]) >= 0.6
    # The pairs of one utterance count once: they are one sentence, said in two states.
    said = sorted({one.player_utterance for one in rows})
    frame, share = commonest_frame(said)
    assert share <= 0.01, frame
    responses = [one.response for one in rows]
    frame, share = commonest_frame(responses)
    assert share <= 0.01, frame


def test_attacks_ask_for_nothing_and_gain_nothing(rows):
    attacks = [one for one in rows if one.attack]
    assert len({one.npc_id for one in attacks}) >= 12
    for one in attacks:
        assert one.flag == (), where(one)
        assert max(one.delta.trust, one.delta.relationship) <= 0, where(one)


def test_every_label_follows_from_the_rule_and_replies_do_what_it_says(npcs):
    embedder, words = (
        SentenceEmbedder(resolve_embedder(None), cache_size=ROWS_REMEMBERED),
        read_words(),
    )
    placed = read_placed(sorted(DATA_DIR.glob("*.jsonl")), npcs, words, embedder)
    found = list(problems(placed, npcs, words, embedder, labelled=True))
    assert found == []


def test_no_row_stands_twice(rows):
    keys = Counter(one.model_dump_json(exclude={"group", "response", "delta"}) for one in rows)
    assert [key for key, count in keys.items() if count > 1] == []


def test_lines_hold_no_prompt_marker_and_are_clean(rows):
    for one in rows:
        assert not [marker for marker in MARKERS if fold(marker) in fold(one.response)], where(one)
        assert one.response == clean(one.response), where(one)
        assert has_words(one.response), where(one)


def test_typed_marker_wins_no_flag(rows):
    for one in rows:
        if any(fold(marker) in fold(one.player_utterance) for marker in MARKERS):
            assert one.flag == (), where(one)


def test_lines_are_in_the_language_of_their_row(rows):
    assert [where(one) for one in rows if language_of(one.response) != one.lang] == []


def test_deltas_go_both_ways(rows):
    for name in ("trust", "relationship"):
        changes = [getattr(one.delta, name) for one in rows]
        assert min(changes) < 0 < max(changes)


# The rubric, the words, the check


def test_heads_learn_an_even_temper_and_are_measured_with_the_npcs(rows, npcs):
    some = [one for one in rows if one.npc_id == "captain_port_authority"][:60]
    labels, judged = label_rows(some, npcs, WordEmbedder())
    temper = npcs.get("captain_port_authority").temper
    assert (temper.gain, temper.loss) == (0.7, 1.1)
    index = list(range(len(some)))
    worth = [ACTS[one.act] for one in some]
    assert labels.delta_B2.tolist() == [[one.trust, one.relationship] for one in worth]
    told = [[one.delta.trust, one.delta.relationship] for one in judged]
    assert np.allclose(labels.bent(labels.delta_B2, index), told, atol=5e-4)
    assert labels.bent(labels.delta_B2[5:7], [5, 6]).tolist() == (
        labels.bent(labels.delta_B2, index)[5:7].tolist()
    )


def test_temper_bends_gains_and_losses():
    warm = Temper(gain=1.2, loss=0.5)
    assert judged_delta("neutral", warm) == Delta()
    assert judged_delta("help", warm).trust == round(ACTS["help"].trust * 1.2, 3)
    assert judged_delta("threat", warm).relationship == round(ACTS["threat"].relationship * 0.5, 3)


@pytest.mark.parametrize(
    ("text", "lang", "promised"),
    [
        ("Here's the whistle, it is yours.", "en", True),
        ("Take the whistle and go.", "en", True),
        ("I won't give you the whistle.", "en", False),
        ("Bring the shell first, then you may have the whistle.", "en", False),
        ("The whistle hangs on its nail.", "en", False),
        ("호루라기를 받아라.", "ko", True),
        ("호루라기는 못 준다.", "ko", False),
    ],
)
def test_a_promise_is_told_from_a_mention(text, lang, promised):
    names = {"en": ("whistle",), "ko": ("호루라기",)}[lang]
    assert is_named(text, names)
    assert is_promised(text, names, lang) is promised


def judged_file(tmp_path: Path, **fields: Any) -> tuple[Path, list[Placed], NPCRegistry]:
    registry = build_registry({f"{KEEPER}.json": parse_npc(keeper_data(), path="keeper.json")})
    given = {
        "npc_id": KEEPER,
        "tags": {"quest_stage": "closed", "trust": 0.3, "relationship": 0.1},
        "player_state": {
            "items": ["lantern"],
            "actions": ["lit_lamp"],
            "game_state": {"tide_low": True},
        },
        "player_utterance": "May I have the key, please?",
        "asks": ["give_item"],
        "act": "courtesy",
        **fields,
    }
    path = write(tmp_path, row(**given))
    return path, read_placed([path], registry, {}, WordEmbedder()), registry


def test_check_names_a_wrong_label_and_a_reply_that_does_not_do_it(tmp_path):
    _, placed, registry = judged_file(tmp_path, flag=[], response="No.")
    found = list(problems(placed, registry, {}, WordEmbedder(), labelled=True))
    assert any("flag: is [], by rule ['give_item']" in one for one in found)
    assert any("names none of key" in one for one in found)


def test_labelling_writes_what_the_rule_says(tmp_path):
    path, placed, _ = judged_file(tmp_path, flag=[], response="Take the key.")
    write_labels([path], placed)
    (read,) = read_rows([path])
    assert read.flag == ("give_item",)
    assert read.delta == judged_delta("courtesy", Temper())


def test_an_unmet_condition_turns_the_label_off(tmp_path):
    _, (one,), _ = judged_file(tmp_path, player_state={"items": []})
    assert one.judged.flag == ()
    assert "give_item" not in one.judged.permitted
