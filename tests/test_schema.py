"""What a call may hold, and how a refusal reads."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.errors import ConflictError, EngineError, InvalidRequest, NPCFileError, UnknownNPC
from engine.schema import (
    FLAGS,
    MAX_HISTORY,
    MAX_LINE,
    MAX_NAME,
    MAX_NAMES,
    Context,
    FlagDetail,
    GenParams,
    SessionState,
    TurnRequest,
    first_complaint,
    parse_request,
    round3,
)

LEAST = {"text": "hello", "npc_id": "smith", "player_id": "p1"}


def refused(**fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(**{**LEAST, **fields})
    return caught.value


def test_three_fields_are_enough():
    request = parse_request(**LEAST)
    assert request == TurnRequest(**LEAST, context=Context(), gen_params=GenParams())


@pytest.mark.parametrize("name", ["text", "npc_id", "player_id"])
def test_missing_field_is_named(name):
    assert (error := refused(**{name: None})).field == name
    assert "required" in error.message


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"contxt": {}}, "contxt"),
        ({"context": {"trsut": 0.1}}, "context.trsut"),
        ({"gen_params": {"temprature": 1}}, "gen_params.temprature"),
        ({"gen_params": {"temprature": None}}, "gen_params.temprature"),
        (
            {"context": {"dialogue_history": [{"player": "a", "npc": "b", "who": "c"}]}},
            "context.dialogue_history.0.who",
        ),
    ],
)
def test_unknown_field_is_named(fields, place):
    error = refused(**fields)
    assert error.field == place
    assert place in error.message
    assert "unknown field" in error.message


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"text": 5}, "text"),
        ({"npc_id": ["smith"]}, "npc_id"),
        ({"npc_id": ""}, "npc_id"),
        ({"player_id": 7}, "player_id"),
        ({"turn_id": 7}, "turn_id"),
        ({"context": "in_progress"}, "context"),
        ({"context": []}, "context"),
        ({"gen_params": [1]}, "gen_params"),
        ({"context": {"trust": "high"}}, "context.trust"),
        ({"context": {"quest_stage": 3}}, "context.quest_stage"),
        ({"context": {"items": "photo"}}, "context.items"),
        ({"context": {"items": [1]}}, "context.items.0"),
        ({"context": {"items": [""]}}, "context.items.0"),
        ({"context": {"game_state": ["door"]}}, "context.game_state"),
        ({"context": {"game_state": {"door": {"open": True}}}}, "context.game_state.door"),
        ({"context": {"game_state": {"door": None}}}, "context.game_state.door"),
        ({"context": {"language": "fr"}}, "context.language"),
        ({"context": {"dialogue_history": [{"player": "a"}]}}, "context.dialogue_history.0.npc"),
        ({"expected_version": -1}, "expected_version"),
        ({"expected_version": 1.5}, "expected_version"),
        ({"gen_params": {"seed": -1}}, "gen_params.seed"),
        ({"gen_params": {"seed": 2**31}}, "gen_params.seed"),
    ],
)
def test_wrong_type_or_value_is_named(fields, place):
    error = refused(**fields)
    assert error.field == place
    assert error.message.startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"context": {"trust": True}}, "context.trust"),
        ({"context": {"relationship": False}}, "context.relationship"),
        ({"gen_params": {"temperature": True}}, "gen_params.temperature"),
        ({"gen_params": {"max_new_tokens": True}}, "gen_params.max_new_tokens"),
        ({"gen_params": {"seed": False}}, "gen_params.seed"),
        ({"expected_version": True}, "expected_version"),
    ],
)
def test_true_is_not_a_number(fields, place):
    error = refused(**fields)
    assert error.field == place
    assert "not true or false" in error.message


@pytest.mark.parametrize(
    "place",
    [
        "context.trust",
        "context.relationship",
        "gen_params.temperature",
        "gen_params.top_p",
        "gen_params.max_new_tokens",
        "gen_params.repetition_penalty",
        "gen_params.seed",
        "expected_version",
    ],
)
@pytest.mark.parametrize("value", ["1", "0.5", "1e0", "", b"1"])
def test_number_in_quotes_is_refused(place, value):
    part, _, name = place.partition(".")
    error = refused(**{part: {name: value} if name else value})
    assert error.field == place
    assert error.message.startswith(f"{place}: must be a number, not text")


@pytest.mark.parametrize("value", [True, False, "0.5"])
def test_probability_is_a_number(value):
    with pytest.raises(ValidationError) as caught:
        FlagDetail(probability=value, threshold=0.5, permitted=True, fired=True, reason=None)
    place, message = first_complaint(caught.value)
    assert place == "probability"
    assert message.startswith("must be a number")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("context", "trust"),
        ("context", "relationship"),
        ("gen_params", "temperature"),
        ("gen_params", "top_p"),
        ("gen_params", "repetition_penalty"),
        ("gen_params", "seed"),
        ("gen_params", "max_new_tokens"),
    ],
)
def test_not_a_finite_number_is_refused(part, name, value):
    assert refused(**{part: {name: value}}).field == f"{part}.{name}"


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, -(2**63), "x" * (MAX_NAME + 1)])
def test_game_state_value_that_cannot_be_stored_is_refused_in_one_plain_sentence(value):
    error = refused(context={"game_state": {"door": value}})
    assert error.field == "context.game_state.door"
    assert "number, true, false or text" in error.message


def test_game_state_keeps_the_types_it_was_given():
    sent = {"open": True, "count": 1, "ratio": 1.5, "name": "1"}
    state = parse_request(**LEAST, context={"game_state": sent}).context.game_state
    assert {key: (type(value), value) for key, value in (state or {}).items()} == {
        key: (type(value), value) for key, value in sent.items()
    }


def test_whole_float_is_an_integer():
    request = parse_request(
        **LEAST, expected_version=7.0, gen_params={"seed": 3.0, "max_new_tokens": 20.0}
    )
    assert (request.expected_version, request.gen_params.seed) == (7, 3)
    assert isinstance(request.gen_params.max_new_tokens, int)


def test_none_means_not_given():
    request = parse_request(
        **LEAST, context=None, gen_params=None, turn_id=None, expected_version=None
    )
    assert request == parse_request(**LEAST)


def test_none_inside_context_and_gen_params_means_not_given():
    request = parse_request(
        **LEAST,
        context=dict.fromkeys(Context.model_fields),
        gen_params=dict.fromkeys(GenParams.model_fields),
    )
    assert request == parse_request(**LEAST)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"npc_id": "x" * (MAX_NAME + 1)}, "npc_id"),
        ({"player_id": "x" * 129}, "player_id"),
        ({"turn_id": "x" * 129}, "turn_id"),
        ({"context": {"items": ["x"] * (MAX_NAMES + 1)}}, "context.items"),
        ({"context": {"actions": ["x" * (MAX_NAME + 1)]}}, "context.actions.0"),
        (
            {"context": {"game_state": {str(n): n for n in range(MAX_NAMES + 1)}}},
            "context.game_state",
        ),
        (
            {"context": {"dialogue_history": [{"player": "a", "npc": "b"}] * (MAX_HISTORY + 1)}},
            "context.dialogue_history",
        ),
        (
            {"context": {"dialogue_history": [{"player": "x" * (MAX_LINE + 1), "npc": "b"}]}},
            "context.dialogue_history.0.player",
        ),
        ({"context": {"trust": 1.001}}, "context.trust"),
        ({"context": {"relationship": -1.001}}, "context.relationship"),
        ({"gen_params": {"temperature": 2.1}}, "gen_params.temperature"),
        ({"gen_params": {"top_p": 0.0}}, "gen_params.top_p"),
        ({"gen_params": {"max_new_tokens": 257}}, "gen_params.max_new_tokens"),
        ({"gen_params": {"repetition_penalty": 0.9}}, "gen_params.repetition_penalty"),
    ],
)
def test_limit_is_enforced(fields, place):
    assert refused(**fields).field == place


def test_value_at_the_limit_is_taken():
    parse_request(
        text="x",
        npc_id="x" * MAX_NAME,
        player_id="x" * 128,
        context={"trust": 1, "relationship": -1, "items": ["x"] * MAX_NAMES},
        gen_params={"temperature": 0, "top_p": 1, "max_new_tokens": 256, "seed": 2**31 - 1},
    )


def test_half_an_emoji_in_speech_is_dropped():
    history = [{"player": "hi\ud83d", "npc": "\udc00yes"}]
    request = parse_request(
        **{**LEAST, "text": "hello \ud83d"}, context={"dialogue_history": history}
    )
    assert request.text == "hello "
    assert [(turn.player, turn.npc) for turn in request.context.dialogue_history or ()] == [
        ("hi", "yes")
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"player_id": "p\ud83d"},
        {"context": {"items": ["\ud83d"]}},
        {"context": {"game_state": {"\ud83d": 1}}},
        {"context": {"game_state": {"a": "\ud83d"}}},
        {"\ud83d": 1},
    ],
)
def test_half_an_emoji_in_a_name_is_refused_and_the_refusal_can_be_sent(fields):
    json.dumps(refused(**fields).to_payload(), ensure_ascii=False).encode("utf-8")


def test_number_of_thousands_of_digits_is_refused_not_printed():
    assert refused(expected_version=10**5000).field == "expected_version"
    assert refused(expected_version=-(10**5000)).field == "expected_version"


def test_long_input_is_not_repeated_in_the_message():
    assert len(refused(npc_id="x" * 100_000).message) < 200


NAMES = st.sampled_from([*TurnRequest.model_fields, *Context.model_fields, *GenParams.model_fields])
ODD_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64])
    | st.floats()
    | ODD_TEXT
)
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | ODD_TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)
ALMOST = st.fixed_dictionaries(
    {"text": JSON_LIKE | st.just("hello"), "npc_id": JSON_LIKE | st.just("smith")},
    optional={
        "player_id": JSON_LIKE | st.just("p1"),
        "context": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(Context.model_fields, JSON_LIKE)
        ),
        "gen_params": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(GenParams.model_fields, JSON_LIKE)
        ),
        "turn_id": JSON_LIKE,
        "expected_version": JSON_LIKE,
    },
)


@settings(
    deadline=None, database=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.dictionaries(NAMES | ODD_TEXT, JSON_LIKE, max_size=6) | ALMOST)
def test_any_input_gives_a_request_or_a_named_refusal(fields):
    refusal = None
    try:
        request = parse_request(**fields)
    except InvalidRequest as error:
        refusal = error
    if refusal is None:
        assert isinstance(request, TurnRequest)
        assert TurnRequest.model_validate_json(request.model_dump_json()) == request
        return
    assert refusal.field
    assert refusal.message
    json.dumps(refusal.to_payload(), ensure_ascii=False).encode("utf-8")


@settings(deadline=None, database=None, max_examples=150)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "trust": st.floats(-1, 1),
            "relationship": st.floats(-1, 1),
            "items": st.lists(st.text("abc_", min_size=1, max_size=9), max_size=9),
            "game_state": st.dictionaries(
                st.text("abc", min_size=1, max_size=3), st.booleans() | st.integers(-9, 9)
            ),
            "npc_mood": st.none() | st.text("abc", min_size=1),
        },
    )
)
def test_valid_context_is_kept_as_given(context):
    parsed = parse_request(**LEAST, context=context).context
    for name, value in context.items():
        kept = getattr(parsed, name)
        assert (list(kept) if isinstance(kept, tuple) else kept) == value


def test_error_payload_has_exactly_four_fields():
    assert UnknownNPC("no such NPC", field="npc_id").to_payload() == {
        "error": {
            "code": "unknown_npc",
            "message": "no such NPC",
            "retryable": False,
            "field": "npc_id",
        }
    }
    assert ConflictError("stale").to_payload()["error"]["field"] is None


def test_every_error_has_a_code_and_a_standard_base():
    def tree(kind: type[EngineError]) -> list[type[EngineError]]:
        return [kind, *(one for sub in kind.__subclasses__() for one in tree(sub))]

    kinds = [kind for kind in tree(EngineError) if kind.__module__ == "engine.errors"]
    assert len({kind.code for kind in kinds if kind.code != "weights"}) > 8
    for kind in kinds[1:]:
        assert issubclass(kind, (ValueError, RuntimeError, OSError)), kind
    assert NPCFileError("m", path="a.json", field="b").path == "a.json"


def test_values_are_frozen():
    request = parse_request(**LEAST)
    with pytest.raises(ValueError, match="frozen"):
        request.text = "other"


def test_flags_are_the_eight_in_the_bundles_order():
    assert FLAGS == (
        "give_item",
        "give_hint",
        "npc_main_story",
        "quest_stage_change",
        "npc_action",
        "change_player_state",
        "change_game_state",
        "unlock_hidden_path",
    )


def test_session_state_survives_json():
    state = SessionState(
        quest_stage="s",
        location="l",
        npc_mood="m",
        player_reputation="r",
        style="t",
        game_state={"open": True, "count": 1},
        fired=("s:give_item",),
    )
    assert SessionState.model_validate_json(state.model_dump_json()) == state


def test_round3_has_three_digits_and_no_minus_zero():
    assert round3(0.12345) == 0.123
    assert math.copysign(1.0, round3(-0.0001)) == 1.0
    with pytest.raises(ValueError, match="finite"):
        round3(math.nan)


def test_a_game_state_key_that_gradio_takes_for_a_file_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="reserved"):
        parse_request(text="Hi", npc_id="a", player_id="b", context={"game_state": {"path": "x"}})
