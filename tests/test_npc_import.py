"""The importer: the original project's real file, a document of each type, and bad ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import NPCFileError
from engine.npc import NPC, read_npc
from engine.npc_import import ImportResult, import_documents, import_file, main, write_npcs
from engine.text import language_of

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "npc_config.json"


# The real file


@pytest.fixture(scope="module")
def real() -> ImportResult:
    if not REFERENCE.is_file():
        pytest.skip("the original project's file is not beside this checkout")
    return import_file(REFERENCE)


@pytest.fixture(scope="module")
def silvia(real) -> NPC:
    (npc,) = real.npcs
    return npc


@pytest.fixture(scope="module")
def raw(real) -> list[dict[str, Any]]:
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def test_real_file_is_one_korean_npc(silvia):
    assert (silvia.id, silvia.language) == ("mother_abandoned_factory", "ko")
    assert silvia.persona.name == "Silvia"
    assert silvia.persona.style == "emotional"
    assert len(silvia.persona.traits) == 3
    assert silvia.quest_stages == ("in_progress",)
    assert (silvia.defaults.quest_stage, silvia.defaults.location) == ("in_progress", "map1")
    assert len(silvia.lore) == 1


def test_real_conditions_hold_for_both_allowed_flags(silvia):
    flags = silvia.stage("in_progress").flags
    assert set(flags) == {"npc_main_story", "give_item"}
    for rule in flags.values():
        assert rule.when.items == ("photo_forgotten_party",)
        assert rule.when.actions == ("visited_factory",)
        assert rule.when.game_state == {}
        assert (rule.when.min_trust, rule.when.min_relationship) == (0.35, None)
        assert rule.when.said is not None
        assert len(rule.when.said.keywords) == 2


def test_real_item_is_the_gold_necklace(silvia):
    rule = silvia.stage("in_progress").flags["give_item"]
    assert (rule.value, rule.threshold) == ("gold_necklace", 0.5)
    assert (len(rule.examples_positive), len(rule.examples_negative)) == (3, 2)
    assert "gold_necklace" in rule.text
    assert silvia.stage("in_progress").flags["npc_main_story"].value is None


def test_real_delta_policy(silvia):
    policy = silvia.stage("in_progress").delta_policy
    assert (policy.trust.min, policy.trust.max, policy.trust.per_turn_cap) == (-0.3, 0.3, 0.15)
    assert (policy.relationship.min, policy.relationship.max) == (-0.5, 0.5)
    assert policy.relationship.per_turn_cap == 0.25


def test_real_turns_keep_order_words_and_deltas(silvia, raw):
    turns = silvia.stage("in_progress").turns
    source = [one for one in raw if one["type"] == "dialogue_turn"]
    assert len(turns) == 10
    assert [(turn.player, turn.npc) for turn in turns] == [
        (one["player"], one["npc"]) for one in source
    ]
    assert (turns[0].delta.trust, turns[-1].delta.trust) == (0.121, 0.15)
    assert {turn.flags for turn in turns[:-1]} == {("npc_main_story",)}
    assert turns[-1].flags == ("npc_main_story", "give_item")
    assert turns[-1].emotion == "grateful"


def test_real_forbidden_words_and_reaction(silvia):
    (trigger,) = silvia.forbidden
    assert (len(trigger.keywords), len(trigger.sentences)) == (3, 4)
    assert trigger.name == trigger.keywords[0]
    assert (trigger.reaction.action, trigger.reaction.emotion) == ("attack", "angry")
    assert (trigger.reaction.delta.trust, trigger.reaction.delta.relationship) == (-1.0, -1.0)
    assert language_of(trigger.reaction.text) == "ko"


def test_real_fallback_keeps_the_instruction_and_gets_a_line(silvia, raw):
    (line,) = silvia.stage("in_progress").fallback
    (source,) = [one for one in raw if one["type"] == "fallback"]
    assert (line.mood, line.about) == ("suspicious", source["content"])
    assert line.text != source["content"]
    assert language_of(line.text) == "ko"


@pytest.mark.parametrize(
    "part",
    [
        "emotion_threshold",
        "delta_expected",
        "flags_expected",
        "score_rag",
        "pred_rag",
        "quest_complete",
        "in_progress_fallback: has no line",
        "trigger_meta_insult: has no line",
        "give_item has no text",
        "npc_main_story has no text",
        "main_res_validate: examples",
        "players start at 'in_progress'",
        "give_item needs trust 0.35",
    ],
)
def test_real_file_warns_of_what_was_made_or_left_out(real, part):
    assert [warning for warning in real.warnings if part in warning]


def test_real_file_comes_out_as_a_file_that_loads(silvia, tmp_path):
    (path,) = write_npcs([silvia], tmp_path)
    assert path.name == "mother_abandoned_factory.json"
    assert read_npc(path) == silvia


# A document of each type


def document(kind: str, **fields: Any) -> dict[str, Any]:
    stage = {} if kind == "npc_persona" else {"quest_stage": "start"}
    return {"id": f"{kind}_1", "type": kind, "npc_id": "smith", **stage, **fields}


def persona(**fields: Any) -> dict[str, Any]:
    return document(
        "npc_persona", persona_name="Ada", backstory="Ada has always been the smith.", **fields
    )


def trigger(**fields: Any) -> dict[str, Any]:
    given = {"trigger": {}, "flag_policy": {"allowed": ["give_item"]}, **fields}
    return document("trigger_def", **given)


def turn(number: int, **fields: Any) -> dict[str, Any]:
    given = {"id": f"turn_{number}", "turn_index": number, "player": f"p{number}", "npc": "Yes."}
    return document("dialogue_turn", **{**given, **fields})


def one(*documents: dict[str, Any]) -> tuple[NPC, str]:
    result = import_documents([persona(), *documents])
    (npc,) = result.npcs
    return npc, "\n".join(result.warnings)


def test_trigger_def_gives_every_condition():
    npc, warnings = one(
        trigger(
            trigger={
                "required_text": ["sword"],
                "required_items": {"mandatory": ["ore"], "optional": ["coal"]},
                "required_actions": {"mandatory": ["bowed"], "optional": []},
                "required_game_state": {"mandatory": ["forge_lit"], "optional": []},
                "required_delta": {"mandatory": {"trust": 0.2, "relationship": -0.1}},
            }
        )
    )
    when = npc.stage("start").flags["give_item"].when
    assert (when.items, when.actions) == (("ore",), ("bowed",))
    assert when.game_state == {"forge_lit": True}
    assert (when.min_trust, when.min_relationship) == (0.2, -0.1)
    assert when.said is not None
    assert when.said.keywords == ("sword",)
    assert "required_items.optional has no effect" in warnings
    assert "required_actions.optional" not in warnings


def test_game_state_may_name_values_even_empty_and_false_ones():
    state = {"forge": "lit", "guests": 0, "open": False, "owner": ""}
    npc, _ = one(trigger(trigger={"required_game_state": {"mandatory": state}}))
    assert npc.stage("start").flags["give_item"].when.game_state == state


def test_legacy_flag_is_mapped_and_unknown_one_left_out_both_with_a_warning():
    npc, warnings = one(trigger(flag_policy={"allowed": ["change_npc_state", "quest_complete"]}))
    assert set(npc.stage("start").flags) == {"npc_action"}
    assert "'change_npc_state' is imported as 'npc_action'" in warnings
    assert "'quest_complete' is unknown" in warnings


def test_flag_that_is_also_forbidden_stays_forbidden():
    npc, warnings = one(
        trigger(flag_policy={"allowed": ["give_item", "give_hint"], "forbidden": ["give_item"]})
    )
    assert set(npc.stage("start").flags) == {"give_hint"}
    assert "stays forbidden" in warnings


def test_second_trigger_def_does_not_loosen_the_first():
    first = trigger(trigger={"required_items": {"mandatory": ["ore"]}})
    npc, warnings = one(first, {**trigger(), "id": "second"})
    assert npc.stage("start").flags["give_item"].when.items == ("ore",)
    assert "second: give_item is left out" in warnings


@pytest.mark.parametrize("stage", ["start", "any"])
def test_flag_def_alone_never_makes_a_flag_fire(stage):
    npc, warnings = one(document("flag_def", flag_name="give_item", quest_stage=stage), turn(1))
    assert npc.stage("start").flags == {}
    assert "no trigger_def allows give_item" in warnings


def test_flag_def_gives_threshold_examples_and_text():
    npc, warnings = one(
        trigger(),
        document(
            "flag_def",
            quest_stage="any",
            flag_name="give_item",
            threshold=0.0,
            text="Ada hands it over.",
            examples_positive=["Take it."],
            examples_negative=["Not yet."],
        ),
    )
    rule = npc.stage("start").flags["give_item"]
    assert (rule.threshold, rule.text) == (0.0, "Ada hands it over.")
    assert (rule.examples_positive, rule.examples_negative) == (("Take it.",), ("Not yet.",))
    assert "give_item has no text" not in warnings
    assert "is left out" not in warnings


def test_missing_delta_policy_gets_the_usual_bounds_and_a_warning():
    _, warnings = one(trigger())
    assert "delta_policy lacks relationship, trust" in warnings
    npc, warnings = one(trigger(delta_policy={"trust": {"per_turn_cap": 0.05}}))
    policy = npc.stage("start").delta_policy
    assert policy is not None
    assert policy.trust.per_turn_cap == 0.05
    assert "delta_policy lacks relationship" in warnings


def test_turns_are_sorted_by_index_and_those_without_one_come_last():
    npc, _ = one(turn(3), {**turn(9), "turn_index": None}, turn(1), turn(2))
    assert [one.player for one in npc.stage("start").turns] == ["p1", "p2", "p3", "p9"]


@pytest.mark.parametrize(
    ("flags", "fired", "value"),
    [
        ({"give_item": 1}, ("give_item",), None),
        ({"give_item": True}, ("give_item",), None),
        ({"give_item": 0}, (), None),
        ({"give_item": "iron_sword"}, ("give_item",), "iron_sword"),
        ([{"flag_name": "give_item", "flag_value": "iron_sword"}], ("give_item",), "iron_sword"),
        ([{"flag_name": "give_item", "flag_value": "yes"}], ("give_item",), None),
        ([{"flag_name": "give_item", "flag_value": "No"}], (), None),
        ([], (), None),
    ],
)
def test_turn_flags_in_either_form(flags, fired, value):
    npc, _ = one(trigger(), turn(1, flags=flags))
    assert npc.stage("start").turns[0].flags == fired
    assert npc.stage("start").flags["give_item"].value == value


def test_second_value_of_a_flag_is_warned_about():
    npc, warnings = one(
        trigger(), turn(1, flags={"give_item": "sword"}), turn(2, flags={"give_item": "spoon"})
    )
    assert npc.stage("start").flags["give_item"].value == "sword"
    assert "turn_2: give_item 'spoon' is left out" in warnings


def test_turn_with_a_flag_that_nothing_allows_is_warned_about():
    _, warnings = one(turn(1, flags={"give_hint": 1}))
    assert "no trigger_def allows give_hint" in warnings


def test_stage_change_leads_to_the_stage_named_or_else_the_next():
    change = trigger(flag_policy={"allowed": ["quest_stage_change"]})
    later = turn(5, quest_stage="middle"), turn(6, quest_stage="end")
    npc, warnings = one(change, *later)
    assert npc.stage("start").flags["quest_stage_change"].value == "middle"
    assert "taken to lead to 'middle'" in warnings
    npc, _ = one(change, *later, turn(1, flags={"quest_stage_change": "end"}))
    assert npc.stage("start").flags["quest_stage_change"].value == "end"
    npc, warnings = one(change)
    assert npc.stage("start").flags == {}
    assert "names no stage and is left out" in warnings


def test_forbidden_words_go_to_the_reaction_that_names_them():
    words = {"keywords": ["liar", "thief", "fool"], "text": ["You are useless."]}
    npc, warnings = one(
        document("forbidden_trigger_list", triggers=words),
        document("trigger_meta", id="m1", trigger="thief", npc="Out!", delta={"trust": -1.0}),
        document("trigger_meta", id="m2", trigger="fool", npc_action="leave"),
    )
    first, second = npc.forbidden
    assert (first.name, set(first.keywords)) == ("thief", {"liar", "thief"})
    assert first.sentences == ("You are useless.",)
    assert (first.reaction.text, first.reaction.delta.trust) == ("Out!", -1.0)
    assert (second.keywords, second.sentences) == (("fool",), ())
    assert second.reaction.action == "leave"
    assert "m2: has no line" in warnings
    assert "m1: has no line" not in warnings


def test_reaction_may_name_a_sentence_or_a_word_of_its_own():
    npc, warnings = one(
        document("forbidden_trigger_list", triggers={"text": ["You are useless."]}),
        document("trigger_meta", id="m1", trigger="You are useless.", npc="Out!"),
        document("trigger_meta", id="m2", trigger="fool", npc="Out!"),
    )
    assert [(one.sentences, one.keywords) for one in npc.forbidden] == [
        (("You are useless.",), ()),
        ((), ("fool",)),
    ]
    assert "no list names 'fool'" in warnings


def test_forbidden_words_without_any_reaction_get_a_mild_one():
    npc, warnings = one(document("forbidden_trigger_list", triggers={"keywords": ["fool"]}))
    (entry,) = npc.forbidden
    assert (entry.keywords, entry.reaction.delta.trust) == (("fool",), 0.0)
    assert language_of(entry.reaction.text) == "en"
    assert "no trigger_meta" in warnings


def test_authored_fallback_line_is_kept_and_a_missing_one_made():
    npc, warnings = one(document("fallback", content="Be curt.", npc="Not now."), turn(1))
    (line,) = npc.stage("start").fallback
    assert (line.text, line.about) == ("Not now.", "Be curt.")
    assert "has no line" not in warnings
    npc, warnings = one(turn(1))
    assert npc.stage("start").fallback
    assert "smith: has no line" in warnings


def test_every_stage_ends_up_with_a_fallback():
    npc, _ = one(
        document("fallback", content="Be curt.", npc="Not now."), turn(1, quest_stage="end")
    )
    assert all(npc.stage(name).fallback for name in npc.quest_stages)


def test_description_and_lore():
    npc, warnings = one(
        trigger(description="From the trigger."),
        document("description", content="From its own document."),
        document("lore", quest_stage="any", content="word " * 400),
    )
    assert npc.stage("start").description == "From its own document."
    assert "description is left out" in warnings
    assert " ".join(npc.lore) == ("word " * 400).strip()
    npc, _ = one(trigger(description="From the trigger."))
    assert npc.stage("start").description == "From the trigger."


def test_answer_examples_go_to_the_main_story_if_it_has_none():
    validate = document("main_res_validate", text="Check.", examples_good=["a"], examples_bad=["b"])
    npc, warnings = one(trigger(flag_policy={"allowed": ["npc_main_story"]}), validate)
    rule = npc.stage("start").flags["npc_main_story"]
    assert (rule.examples_positive, rule.examples_negative) == (("a",), ("b",))
    assert "check that they fit" in warnings
    _, warnings = one(trigger(), validate)
    assert "examples are left out" in warnings


def test_unknown_field_is_warned_about():
    _, warnings = one(turn(1, camera="close"))
    assert "turn_1: camera has no counterpart" in warnings


def test_korean_text_makes_a_korean_npc_with_korean_stand_ins():
    npc, _ = one(
        trigger(description="대장장이는 검을 만들고 있다."),
        turn(1, player="안녕하세요, 오늘은 어떠세요?", npc="어서 오세요. 무슨 일로 오셨나요?"),
    )
    assert npc.language == "ko"
    assert language_of(npc.stage("start").fallback[0].text) == "ko"
    assert language_of(npc.stage("start").flags["give_item"].text) == "ko"


def test_bare_npc_gets_documented_defaults_and_a_warning_each():
    result = import_documents([{"id": "a", "type": "lore", "npc_id": "old_mill", "content": "x"}])
    (npc,) = result.npcs
    assert (npc.defaults.quest_stage, npc.defaults.location) == ("not_started", "unknown")
    assert (npc.defaults.trust, npc.defaults.relationship) == (0.0, 0.0)
    assert npc.persona.name == "Old Mill"
    for part in ("npc_persona", "backstory", "location", "first stage", "standing", "line"):
        assert any(part in warning for warning in result.warnings), part


def test_one_npc_for_each_id_in_the_order_of_the_source():
    other = {**persona(), "id": "other", "npc_id": "baker"}
    result = import_documents([other, persona()])
    assert [npc.id for npc in result.npcs] == ["baker", "smith"]


# Bad documents


@pytest.mark.parametrize(
    ("bad", "label", "place"),
    [
        ("text", "document 2", "document"),
        ({"type": "lore", "npc_id": "smith", "content": "x"}, "document 2", "id"),
        ({"id": "x", "npc_id": "smith"}, "x", "type"),
        ({"id": "x", "type": "poem", "npc_id": "smith"}, "x", "type"),
        ({"id": "x", "type": ["lore"], "npc_id": "smith"}, "x", "type"),
        ({"id": "x", "type": "lore", "content": "x"}, "x", "npc_id"),
        ({"id": "x", "type": "lore", "npc_id": "../up", "content": "x"}, "x", "npc_id"),
        (document("lore", content=""), "lore_1", "content"),
        (document("lore", content=5), "lore_1", "content"),
        (document("lore", content="x", id="npc_persona_1"), "npc_persona_1", "id"),
        (document("trigger_def"), "trigger_def_1", "trigger"),
        (
            trigger(trigger={"required_weather": ["rain"]}),
            "trigger_def_1",
            "trigger.required_weather",
        ),
        (
            trigger(trigger={"required_delta": {"mandatory": {"fear": 0.1}}}),
            "trigger_def_1",
            "trigger.required_delta.mandatory.fear",
        ),
        (
            trigger(trigger={"required_delta": {"mandatory": {"trust": 5}}}),
            "trigger_def_1",
            "trigger.required_delta.mandatory.trust",
        ),
        (
            trigger(trigger={"required_items": {"mandatory": "ore"}}),
            "trigger_def_1",
            "trigger.required_items.mandatory",
        ),
        (
            trigger(trigger={"required_game_state": {"mandatory": [["lit"]]}}),
            "trigger_def_1",
            "trigger.required_game_state.mandatory",
        ),
        (
            trigger(delta_policy={"trust": {"per_turn_cap": 9}}),
            "trigger_def_1",
            "delta_policy.trust.per_turn_cap",
        ),
        (turn(1, delta={"trust": -1.5}), "turn_1", "delta.trust"),
        (turn(1, flags=["give_item"]), "turn_1", "flags"),
        (turn(1, flags=[{"flag_name": "give_item"}]), "turn_1", "flags"),
        (turn(1, flags={"give_item": [1]}), "turn_1", "flags.give_item"),
        (turn(1, npc=None), "turn_1", "npc"),
        (document("flag_def", threshold=0.5), "flag_def_1", "flag_name"),
        (document("flag_def", flag_name="give_item", threshold=7), "flag_def_1", "threshold"),
        (
            document("forbidden_trigger_list", triggers={"keywords": [""]}),
            "forbidden_trigger_list_1",
            "triggers.keywords.0",
        ),
        (document("trigger_meta", delta={}), "trigger_meta_1", "trigger"),
        ({**persona(), "id": "again"}, "again", "type"),
    ],
)
def test_malformed_document_is_named_with_its_field(bad, label, place):
    with pytest.raises(NPCFileError) as caught:
        import_documents([persona(), bad], source="old.json")
    assert (caught.value.path, caught.value.field) == ("old.json", place)
    assert str(caught.value).startswith(f"old.json: {label}: {place}: ")


def test_empty_list_is_refused():
    with pytest.raises(NPCFileError, match="holds no documents"):
        import_documents([])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "must hold a JSON list"),
        ("[{]", "line 1, column 3"),
        ('[{"id": "a", "id": "b"}]', "'id' stands twice"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_file_that_is_no_list_is_refused(tmp_path, text, says):
    path = tmp_path / "old.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NPCFileError, match=r"old\.json") as caught:
        import_file(path)
    assert says in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(NPCFileError, match=r"nowhere\.json: cannot be read"):
        import_file(tmp_path / "nowhere.json")


# Writing


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "old.json"
    documents = [persona(), turn(1), {**persona(), "id": "b", "npc_id": "baker"}]
    text = "\ufeff  \n\n" + json.dumps(documents).replace("}, {", "},\n\n\n {")
    path.write_text(text, encoding="utf-8")
    return path


def test_command_writes_files_and_prints_warnings(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(source), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["baker.json", "smith.json"]
    assert read_npc(out / "smith.json").persona.name == "Ada"
    printed = capsys.readouterr()
    assert "smith.json" in printed.out
    assert "warning: smith: names no first stage" in printed.err


def test_command_overwrites_only_when_forced(source, tmp_path, capsys):
    (tmp_path / "smith.json").write_text("mine", encoding="utf-8")
    assert main([str(source), "--out", str(tmp_path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "smith.json").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "baker.json").exists()
    assert main([str(source), "--out", str(tmp_path), "--force"]) == 0
    assert read_npc(tmp_path / "smith.json").id == "smith"


def test_bad_source_writes_nothing(tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text(json.dumps([persona(), {"id": "x"}]), encoding="utf-8")
    out = tmp_path / "out"
    assert main([str(path), "--out", str(out)]) == 1
    assert "error: old.json: x: type" in capsys.readouterr().err
    assert not out.exists()


def test_failed_write_leaves_nothing_behind(source, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    with pytest.raises(NPCFileError, match="No space left"):
        write_npcs(import_file(source).npcs, out)
    assert list(out.iterdir()) == []


def test_written_file_shows_only_what_was_authored(source, tmp_path):
    (path, _) = write_npcs(import_file(source).npcs, tmp_path / "out")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["language"] == "en"
    assert "emotion" not in data["stages"]["start"]["turns"][0]
    assert "lore" not in data or data["lore"] == []
