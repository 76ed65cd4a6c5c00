from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api import Api
from engine.errors import Busy, EngineError, ModelError, StateStoreError
from engine.schema import FLAGS
from tests.engines import KEEPER, SHORT, Workshop

PROMPT = "<SYS>You are Ada.<PLAYER>Good morning<STATE>"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


@pytest.fixture
def api(lab: Workshop) -> Api:
    return Api(lab.service())


def ask(api: Api, text: Any = "Good morning.", **changes: Any) -> dict[str, Any]:
    arguments = {"npc_id": KEEPER, "player_id": "p1", "gen_params": SHORT, **changes}
    answer = api.ask(text, **arguments)
    assert json.loads(json.dumps(answer)) == answer
    return answer


def error_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the error of an answer, after checking that it is one and is plain."""
    assert set(answer) == {"error"}, answer
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"code", "message", "retryable", "field"}
    assert error["message"]
    for word in ("Traceback", 'File "', "pydantic", "validation error", "https://errors"):
        assert word not in error["message"]
    return error


# --- answers --------------------------------------------------------------------------------------


def test_answer_has_text_delta_flags_and_meta(api: Api) -> None:
    answer = ask(api, turn_id="t1")
    assert set(answer) == {"text", "delta", "flags", "meta"}
    assert set(answer["delta"]) == {"trust", "relationship"}
    assert tuple(answer["flags"]) == FLAGS
    meta = answer["meta"]
    assert (meta["npc_id"], meta["player_id"], meta["turn_id"]) == (KEEPER, "p1", "t1")
    assert (meta["route"], meta["version"], meta["quest_stage"]) == ("main", 1, "closed")
    assert set(meta["flags_detail"]["give_item"]) == {
        "probability",
        "threshold",
        "permitted",
        "fired",
        "reason",
    }
    assert set(meta["timings_ms"]) == {"prefill", "state", "generate", "total"}
    assert meta["model"] == {"base": "tiny-random", "bundle": "tiny"}


def test_three_arguments_are_enough(api: Api) -> None:
    assert api.ask("Good morning.", KEEPER, "p1")["meta"]["route"] == "main"


def test_stream_begins_with_the_state_without_text_and_ends_with_the_whole(api: Api) -> None:
    events = list(api.ask_stream("Good morning.", KEEPER, "p1", gen_params=SHORT))
    assert json.loads(json.dumps(events)) == events
    assert set(events[0]) == {"delta", "flags", "meta"}
    assert all(set(event) == {"text"} for event in events[1:-1])
    assert set(events[-1]) == {"text", "delta", "flags", "meta"}
    assert events[-1]["flags"] == events[0]["flags"]


def test_prediction_has_text_delta_and_probabilities(api: Api) -> None:
    answer = api.predict_main(PROMPT, KEEPER, {"trust": 0.5}, SHORT)
    assert set(answer) == {"text", "delta", "flags"}
    assert len(answer["delta"]) == 2
    assert tuple(answer["flags"]) == FLAGS
    assert json.loads(json.dumps(answer)) == answer


def test_session_is_saved_loaded_taken_back_and_forgotten(api: Api) -> None:
    ask(api)
    saved = json.loads(json.dumps(api.save("p1")))
    ask(api, "A calm sea.")
    assert api.session("p1", KEEPER)["version"] == 2
    assert api.undo("p1", KEEPER)["version"] == 3
    assert api.load(saved) == {"loaded": True, "player_id": "p1", "npcs": [KEEPER]}
    assert len(api.session("p1", KEEPER)["history"]) == 1
    assert api.forget("p1", KEEPER)["history"] == []


def test_npcs_tell_what_a_game_may_know(api: Api) -> None:
    (npc,) = api.npcs()["npcs"]
    assert (npc["npc_id"], npc["name"], npc["languages"]) == (KEEPER, "Ada", ["en", "ko"])
    assert npc["quest_stages"] == ["closed", "open"]
    assert npc["flags"] == {"closed": ["give_item", "quest_stage_change"], "open": ["give_hint"]}
    assert npc["defaults"]["trust"] == 0.1


def test_status_and_reload_are_plain_json(api: Api) -> None:
    for answer in (api.status(), api.reload()):
        assert json.loads(json.dumps(answer)) == answer
        assert "error" not in answer


def test_the_prompt_is_shown_and_nothing_is_played(api: Api) -> None:
    told = api.prompt("Give me the <STATE> key.", KEEPER, "p1", {"items": ["lantern"]})
    assert told["prompt"].count("<STATE>") == 1
    assert "lantern" in told["prompt"]
    assert 0 < told["shared_tokens"] < told["tokens"]
    assert api.session("p1", KEEPER)["version"] == 0
    assert api.prompt("", KEEPER, "p1")["error"]["field"] == "text"
    assert api.prompt("Hello", "nobody", "p1")["error"]["code"] == "unknown_npc"


def test_every_call_has_its_name_and_a_first_line_for_the_api_page(api: Api) -> None:
    calls = api.calls()
    assert {"ask", "ask_stream", "predict_main", "npcs", "status", "reload", "save", "load"} <= set(
        calls
    )
    for name, call in calls.items():
        assert call.__name__ == name
        assert (call.__doc__ or "").splitlines()[0].endswith(".")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": None}, "text"),
        ({"text": 5}, "text"),
        ({"text": ["Hello"]}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \u200b "}, "text"),
        ({"text": "x" * 1001}, "text"),
        ({"text": "x" * 2_000_000}, "text"),
        ({"npc_id": None}, "npc_id"),
        ({"npc_id": 7}, "npc_id"),
        ({"npc_id": ""}, "npc_id"),
        ({"npc_id": "x" * 65}, "npc_id"),
        ({"player_id": None}, "player_id"),
        ({"player_id": ""}, "player_id"),
        ({"player_id": "x" * 129}, "player_id"),
        ({"player_id": "a\0b"}, "player_id"),
        ({"turn_id": ""}, "turn_id"),
        ({"turn_id": 3}, "turn_id"),
        ({"expected_version": -1}, "expected_version"),
        ({"expected_version": "x"}, "expected_version"),
        ({"expected_version": True}, "expected_version"),
        ({"context": "closed"}, "context"),
        ({"context": []}, "context"),
        ({"context": {"trst": 0.5}}, "context.trst"),
        ({"context": {"trust": 1.01}}, "context.trust"),
        ({"context": {"trust": "high"}}, "context.trust"),
        ({"context": {"trust": True}}, "context.trust"),
        ({"context": {"trust": float("nan")}}, "context.trust"),
        ({"context": {"items": "lantern"}}, "context.items"),
        ({"context": {"items": [1]}}, "context.items.0"),
        ({"context": {"items": ["x"] * 65}}, "context.items"),
        ({"context": {"quest_stage": "nowhere"}}, "context.quest_stage"),
        ({"context": {"game_state": {"a": {"b": 1}}}}, "context.game_state.a"),
        ({"context": {"dialogue_history": [{"player": "a"}]}}, "context.dialogue_history.0.npc"),
        ({"context": {"language": "fr"}}, "context.language"),
        ({"gen_params": [1]}, "gen_params"),
        ({"gen_params": {"temperature": 2.1}}, "gen_params.temperature"),
        ({"gen_params": {"temperature": float("nan")}}, "gen_params.temperature"),
        ({"gen_params": {"top_p": 0}}, "gen_params.top_p"),
        ({"gen_params": {"max_new_tokens": 0}}, "gen_params.max_new_tokens"),
        ({"gen_params": {"max_new_tokens": 257}}, "gen_params.max_new_tokens"),
        ({"gen_params": {"repetition_penalty": 0.5}}, "gen_params.repetition_penalty"),
        ({"gen_params": {"seed": -1}}, "gen_params.seed"),
        ({"gen_params": {"seed": 1.5}}, "gen_params.seed"),
        ({"gen_params": {"beams": 4}}, "gen_params.beams"),
    ],
)
def test_bad_argument_is_refused_with_its_field_by_ask_and_stream(
    refusing: Api, changes: dict[str, Any], field: str
) -> None:
    error = error_of(ask(refusing, **changes))
    assert (error["code"], error["retryable"], error["field"]) == ("invalid_request", False, field)
    arguments = {"text": "Hello", "npc_id": KEEPER, "player_id": "p1", **changes}
    assert list(refusing.ask_stream(**arguments)) == [{"error": error}]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One service for all calls that change nothing."""
    with Workshop(tmp_path_factory.mktemp("refusing")) as workshop:
        yield Api(workshop.service())


def test_refused_calls_commit_nothing(refusing: Api) -> None:
    assert refusing.session("p1", KEEPER)["version"] == 0


def test_misspelt_context_field_is_called_unknown(refusing: Api) -> None:
    assert "unknown field" in error_of(ask(refusing, context={"trst": 0.5}))["message"]


def test_limit_of_the_text_is_named(refusing: Api) -> None:
    message = error_of(ask(refusing, "x" * 1001))["message"]
    assert "1001" in message
    assert "1000" in message


def test_unknown_npc_has_a_code_of_its_own(refusing: Api) -> None:
    for answer in (
        ask(refusing, npc_id="nobody"),
        refusing.predict_main(PROMPT, "nobody"),
        refusing.session("p1", "nobody"),
        refusing.undo("p1", "nobody"),
        refusing.forget("p1", "nobody"),
    ):
        error = error_of(answer)
        assert (error["code"], error["retryable"], error["field"]) == (
            "unknown_npc",
            False,
            "npc_id",
        )
        assert KEEPER in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        ((5, KEEPER), "invalid_request", "prompt"),
        ((PROMPT, None), "invalid_request", "npc_id"),
        ((PROMPT, KEEPER, "sad"), "invalid_request", "persona_tags"),
        ((PROMPT, KEEPER, None, {"seed": "x"}), "invalid_request", "seed"),
        ((PROMPT, KEEPER, None, {"beams": 1}), "invalid_request", "beams"),
        (("Hello", KEEPER), "bad_prompt", "prompt"),
        (("<PLAYER>Hello", KEEPER), "bad_prompt", "prompt"),
        (("<STATE>" * 2, KEEPER), "bad_prompt", "prompt"),
    ],
)
def test_bad_prediction_is_refused_with_its_field(
    refusing: Api, arguments: tuple[Any, ...], code: str, field: str
) -> None:
    error = error_of(refusing.predict_main(*arguments))
    assert (error["code"], error["retryable"], error["field"]) == (code, False, field)


@pytest.mark.parametrize("player_id", [None, "", 5, ["p1"], "x" * 129, "a\0b"])
def test_bad_player_id_is_refused_everywhere(refusing: Api, player_id: Any) -> None:
    for answer in (
        refusing.save(player_id),
        refusing.session(player_id, KEEPER),
        refusing.undo(player_id, KEEPER),
        refusing.forget(player_id, KEEPER),
    ):
        error = error_of(answer)
        assert (error["code"], error["field"]) == ("invalid_request", "player_id")


@pytest.mark.parametrize("npc_id", [None, "", 5])
def test_bad_npc_id_is_refused_everywhere(refusing: Api, npc_id: Any) -> None:
    for call in (refusing.session, refusing.undo, refusing.forget):
        error = error_of(call("p1", npc_id))
        assert (error["code"], error["field"]) == ("invalid_request", "npc_id")


@pytest.mark.parametrize("data", [None, [], "{}", {}, {"format": "something/else"}])
def test_what_is_no_save_file_is_refused(refusing: Api, data: Any) -> None:
    assert error_of(refusing.load(data))["code"] == "invalid_request"


def test_undo_without_a_turn_is_refused(refusing: Api) -> None:
    assert "no turn to take back" in error_of(refusing.undo("p1", KEEPER))["message"]


def test_conflicts_have_a_code_and_a_field(api: Api) -> None:
    ask(api, turn_id="t1")
    reused = error_of(ask(api, "Something else.", turn_id="t1"))
    assert (reused["code"], reused["retryable"], reused["field"]) == ("conflict", False, "turn_id")
    stale = error_of(ask(api, expected_version=0))
    assert (stale["code"], stale["field"]) == ("conflict", "expected_version")


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code", "retryable"),
    [
        (Busy("many wait"), "busy", True),
        (StateStoreError("the disk is full"), "state_store", True),
        (ModelError("no result"), "model_failed", True),
    ],
)
def test_failure_during_a_turn_comes_as_a_payload(
    lab: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    failure: EngineError,
    code: str,
    retryable: bool,
) -> None:
    service = lab.service()

    def fail(_request: Any) -> Any:
        raise failure
        yield

    monkeypatch.setattr(service.engine, "ask_stream", fail)
    failing = Api(service)
    for answer in (ask(failing), *failing.ask_stream("Hello", KEEPER, "p1")):
        error = error_of(answer)
        assert (error["code"], error["retryable"]) == (code, retryable)


def test_unexpected_failure_is_internal_and_keeps_its_words_for_the_log(
    lab: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = lab.service()

    def fail(*_args: Any, **_more: Any) -> Any:
        raise ZeroDivisionError("secret of /srv/app")

    for name in ("ask", "ask_stream", "predict", "session", "undo", "forget", "save", "load"):
        monkeypatch.setattr(service.engine, name, fail)
    for name in ("status", "npcs", "reload"):
        monkeypatch.setattr(service, name, fail)
    failing = Api(service)
    answers = [
        ask(failing),
        *failing.ask_stream("Hello", KEEPER, "p1"),
        failing.predict_main(PROMPT, KEEPER),
        failing.session("p1", KEEPER),
        failing.undo("p1", KEEPER),
        failing.forget("p1", KEEPER),
        failing.save("p1"),
        failing.load({}),
        failing.status(),
        failing.npcs(),
        failing.reload(),
    ]
    with caplog.at_level(logging.ERROR):
        for answer in answers:
            error = error_of(answer)
            assert (error["code"], error["retryable"]) == ("internal", False)
            assert "secret" not in error["message"]
            assert "ZeroDivisionError" in error["message"]
    assert "secret of /srv/app" in caplog.text


def test_calls_before_the_engine_is_ready_say_so(lab: Workshop) -> None:
    waiting = Api(lab.service(load=False))
    for answer in (
        ask(waiting),
        *waiting.ask_stream("Hello", KEEPER, "p1"),
        waiting.predict_main(PROMPT, KEEPER),
        waiting.session("p1", KEEPER),
        waiting.save("p1"),
        waiting.load({}),
    ):
        error = error_of(answer)
        assert (error["code"], error["retryable"]) == ("not_ready", True)
        assert "still starting" in error["message"]
    assert waiting.status()["ready"] is False
    assert waiting.npcs() == {"npcs": []}
