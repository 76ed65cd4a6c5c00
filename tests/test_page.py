"""The page: what it draws (pure), and what a browser makes of it (headless Chromium)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from engine.errors import InvalidRequest
from engine.npc import NPC, load_folder
from engine.schema import LineSource, Route
from engine.ui import journey, render, scene
from engine.ui.calls import endpoint, first_line, turn_limit
from engine.ui.desk import View, message
from engine.ui.words import EN, KO, locale_of
from tests.app_process import ROOT, call, endless_lines, served, start, stop

SILVIA = "mother_abandoned_factory"
SMITH = "blacksmith_village_center"
EVIL = '<img src=x onerror="alert(1)">${1}{{2}}'


@pytest.fixture(scope="module")
def npc() -> NPC:
    return load_folder(ROOT / "npc_configs").get(SILVIA)


def result(**meta: Any) -> dict[str, Any]:
    """Return a turn's result as JSON."""
    detail = {"probability": 0.9, "threshold": 0.5, "permitted": True, "fired": True}
    return {
        "text": "Take it.",
        "delta": {"trust": 0.125, "relationship": -0.04},
        "flags": {"give_item": True, "give_hint": False},
        "meta": {
            "route": "main",
            "route_reason": None,
            "quest_stage": "first",
            "next_quest_stage": "second",
            "state_before": {"trust": 0.1, "relationship": 0.0},
            "state": {"trust": 0.225, "relationship": -0.04},
            "actions": [{"flag": "give_item", "value": "key", "text": "Gives the key."}],
            "flags_detail": {
                "give_hint": {
                    **detail,
                    "permitted": False,
                    "fired": False,
                    "reason": "needs a map",
                },
                "give_item": {**detail, "reason": None},
            },
            "reaction": None,
            "line": "generated",
            "language": "en",
            "version": 3,
            "seed": 7,
            "model": {"base": "some/base", "bundle": "tiny"},
            "timings_ms": {"prefill": 1.0, "state": 120.0, "generate": 900.0, "total": 1500.0},
            **meta,
        },
    }


# What is drawn


def test_turn_shows_before_after_and_signed_delta():
    drawn = render.turn_view(result(), "en")
    assert 'aria-label="Trust: +0.10 → +0.225, +0.125"' in drawn
    assert "▲ +0.125" in drawn
    assert "▼ −0.04" in drawn
    assert "first → <b>second</b>" in drawn
    assert "1.5 s" in drawn


def test_flags_show_what_fired_first_and_why_the_rest_did_not():
    drawn = render.turn_view(result(), "en")
    assert drawn.index("<code>give_item</code></th>") < drawn.index("needs a map")
    assert drawn.count("✓") == 1
    assert "0.90 / 0.50" in drawn


def test_flags_of_other_stages_are_folded_away():
    drawn = render.turn_view(result(), "en", stage_flags={"give_item"})
    here, away = drawn.split('<details class="pc-rest">')
    assert "give_hint" not in here
    assert "give_hint" in away


@pytest.mark.parametrize("locale", ["en", "ko"])
def test_every_source_of_a_line_and_every_route_can_be_told(npc, locale):
    for line in get_args(LineSource):
        for route in get_args(Route):
            assert render.turn_view(result(line=line, route=route), locale, stage_flags=[])


def test_a_turn_without_a_model_shows_no_probability():
    off = {"probability": None, "threshold": None, "permitted": False, "fired": False}
    details = {"give_item": {**off, "reason": "the utterance is forbidden"}}
    reaction = {"trigger": "insult", "action": "turns_away", "emotion": None}
    drawn = render.turn_view(
        result(route="forbidden", actions=[], flags_detail=details, reaction=reaction), "en"
    )
    assert "pc-meter" not in drawn
    assert "insult · turns_away" in drawn


def test_text_of_files_players_and_models_is_escaped(npc):
    persona = npc.persona.model_copy(
        update={"name": EVIL, "role": EVIL, "traits": (EVIL,), "backstory": EVIL}
    )
    evil = npc.model_copy(update={"persona": persona})
    standing = {**stranger(npc), "location": EVIL, "style": EVIL}
    action = {"flag": EVIL, "value": EVIL, "text": EVIL}
    drawn = [
        render.persona_card(evil, ("en",), standing, "en"),
        render.turn_view(result(actions=[action], quest_stage=EVIL, route_reason=EVIL), "en"),
        render.will_send_view({"location": EVIL, "items": [EVIL]}, {}, "en"),
        render.note(EVIL),
        render.status_view({"ready": False, "reason": EVIL, "npc_faults": []}, "en"),
        render.status_view({"loading": {"fraction": 0.5, "message": EVIL}}, "en"),
        render.calls_table([(EVIL, f"`{EVIL}`")], "en"),
    ]
    for one in drawn:
        assert "<img" not in one
        assert "${" not in one
        assert "{{" not in one


def stranger(npc: NPC) -> dict[str, Any]:
    return {
        "version": 0,
        "quest_stage": npc.defaults.quest_stage,
        "standing": {"trust": 0.3, "relationship": 0.25},
        "location": "map1",
        "npc_mood": "grief",
        "player_reputation": "unknown",
        "style": "emotional",
        "items": [],
        "actions": [],
        "game_state": {},
        "history": [],
    }


def test_standing_shows_what_each_flag_of_the_stage_asks_for(npc):
    drawn = render.standing_view(npc, stranger(npc), "en")
    flags = npc.stage(npc.defaults.quest_stage).flags
    assert all(f"<code>{flag}</code>" in drawn for flag in flags)
    assert "no turns yet" in drawn


def test_starting_shows_a_bar_and_a_reason_shows_itself():
    bar = render.status_view({"loading": {"fraction": 0.42, "message": "fetching"}}, "en")
    assert 'aria-valuenow="42"' in bar
    assert "fetching" in bar
    assert 'role="alert"' in render.status_view({"reason": "no bundle"}, "en")


def test_both_languages_have_the_same_words():
    assert set(EN) == set(KO)
    assert locale_of("ko-KR,ko;q=0.9") == "ko"
    assert locale_of("en-US,ko;q=0.9") == locale_of(None) == "en"


# The scene fields


def test_only_what_the_designer_changed_is_sent(npc):
    before = scene.shown(stranger(npc))
    assert scene.context_of(before, before, "") == {}
    now = {**before, "trust": 0.5, "items": ["map"], "location": "  ", "game_state": "open = true"}
    assert scene.context_of(now, before, "ko") == {
        "trust": 0.5,
        "items": ["map"],
        "game_state": {"open": True},
        "language": "ko",
    }
    assert scene.gen_params_of({"temperature": 0.3, "top_p": 0.5, "seed": None}) == {"top_p": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        (None, {}),
        ("open = true\n\nname = Old Mill ", {"open": True, "name": "Old Mill"}),
        ('{"open": true, "n": 3}', {"open": True, "n": 3}),
        ('code = "007"\nn=7', {"code": "007", "n": 7}),
        ("list = [1]", {"list": "[1]"}),
    ],
)
def test_game_state_is_read_as_json_or_lines(text, value):
    assert scene.parse_game_state(text) == value
    assert scene.parse_game_state(scene.lines_of(value)) == value


@pytest.mark.parametrize(
    "text", ["no equals", "= 3", "a = 1\na = 2", '{"a": }', '{"a": [1]}', '{"a": null}']
)
def test_game_state_that_cannot_be_read_names_the_field(text):
    with pytest.raises(InvalidRequest) as caught:
        scene.parse_game_state(text)
    assert caught.value.field == "context.game_state"


def test_presets_meet_the_conditions_of_their_flag(npc):
    presets = {one.key: one for one in scene.presets_of(npc)}
    for stage in npc.quest_stages:
        for flag, rule in npc.stage(stage).flags.items():
            values = presets[f"{stage} · {flag}"].values
            assert set(rule.when.items) <= set(values["items"])
            assert values["trust"] >= (rule.when.min_trust or -1)
            assert scene.parse_game_state(values["game_state"]) == rule.when.game_state


def test_undo_takes_one_exchange_off_the_talk():
    greeted = View(talk=(message("assistant", "Hi."),))
    after = greeted.with_turn("Hello", result())
    assert (len(after.talk), after.steps[0]["player"]) == (3, "Hello")
    assert after.without_turn() == greeted
    assert greeted.without_turn() == greeted


# The endpoints


def test_a_turn_may_always_reach_the_engine_to_hear_that_it_is_busy():
    assert turn_limit(64) > 64
    assert turn_limit(10000) <= 256


def test_an_endpoint_keeps_stream_and_first_line():
    def stream(text: str, more: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Say it.

        At length.
        """
        yield {"text": text, "meta": {"route": "main"}}

    made = endpoint(stream)
    assert first_line(made) == "Say it."
    assert list(made("x")) == [{"text": "x", "meta": {"route": "main"}}]


# In a browser


def chromium() -> str | None:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((one for one in found if one), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = driver.chromium.launch(executable_path=path, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="module")
def url() -> str:
    return served()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser) -> Iterator[Open]:
    """Open the page in a browser context of its own; fails on console errors and stray requests."""
    complaints: list[str] = []
    contexts = []

    def watch(page: Any) -> None:
        page.on(
            "console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else 0
        )
        page.on("pageerror", lambda exc: complaints.append(str(exc)))
        page.on(
            "request",
            lambda r: (
                complaints.append(r.url) if "://" in r.url[:8] and ("127.0.0.1" not in r.url) else 0
            ),
        )

    def visited(url: str, *, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(url)
        if ready:
            page.wait_for_selector("#pc-card h2")
        return page

    yield visited
    for context in contexts:
        context.close()
    assert complaints == []


def say(page: Any, words: str) -> None:
    """Say something with Enter and wait for the whole line."""
    page.fill("#pc-say textarea", words)
    page.press("#pc-say textarea", "Enter")
    settled(page)


def settled(page: Any) -> None:
    page.wait_for_selector("#pc-inspector .pc-flags")
    page.wait_for_selector("#pc-inspector:not(:has(.pc-writing))")
    page.wait_for_selector("#pc-send")


def bubbles(page: Any) -> list[str]:
    found: list[str] = page.locator("#pc-talk [data-testid=bot], #pc-talk [data-testid=user]")
    return [one.strip() for one in found.all_inner_texts()]  # type: ignore[attr-defined]


def player_of(page: Any) -> str:
    value: str = page.input_value("#pc-player textarea, #pc-player input")
    return value


def choose(page: Any, field: str, option: str) -> None:
    page.click(f"#{field} input")
    page.locator(f"#{field} [role=option]", has_text=re.compile(option)).first.click()


def talks_to(page: Any, name: str) -> None:
    choose(page, "pc-npc", name)
    page.wait_for_function(f"document.querySelector('#pc-card h2').innerText.includes('{name}')")


def test_a_turn_is_decided_shown_and_taken_back(visit, url):
    page = visit(url)
    talks_to(page, "Hedda")
    assert len(bubbles(page)) == 1
    say(page, "Good morning. Is this your forge?")
    assert len(bubbles(page)) == 3
    assert bubbles(page)[1] == "Good morning. Is this your forge?"
    assert page.input_value("#pc-say textarea") == ""
    assert page.evaluate("document.activeElement.closest('#pc-say') !== null")
    assert page.locator("#pc-inspector .pc-delta").count() == 2
    assert page.locator("#pc-inspector .pc-flags tbody tr").count() == 8
    moved = page.input_value("#pc-trust input[type=number]")
    page.click("#pc-undo")
    page.wait_for_selector("#pc-note .pc-good")
    assert len(bubbles(page)) == 1
    assert page.input_value("#pc-say textarea") == "Good morning. Is this your forge?"
    assert page.input_value("#pc-trust input[type=number]") != moved
    page.click("#pc-undo")
    page.wait_for_selector("#pc-note .pc-bad")
    assert "no turn to take back" in page.inner_text("#pc-note")


def test_state_appears_before_the_words(visit, url):
    page = visit(url)
    page.fill("#pc-say textarea", "Hello there.")
    with endless_lines(url):
        page.click("#pc-send")
        page.wait_for_selector("#pc-inspector .pc-writing")
        assert page.locator("#pc-stop").is_visible()
        assert page.locator("#pc-undo").is_disabled()
    settled(page)
    assert page.locator("#pc-undo").is_enabled()


def test_clear_makes_the_npc_forget(visit, url):
    page = visit(url)
    say(page, "Remember me.")
    page.click("#pc-clear")
    page.wait_for_selector("#pc-note .pc-good")
    assert len(bubbles(page)) == 1
    npc_id = call(url, "npcs")["npcs"][0]["npc_id"]
    assert call(url, "session", player_id=player_of(page), npc_id=npc_id)["history"] == []


def test_stop_keeps_nothing_and_gives_the_words_back(visit, url):
    page = visit(url)
    page.fill("#pc-say textarea", "Tell me a long story.")
    with endless_lines(url):
        page.click("#pc-send")
        page.wait_for_selector("#pc-inspector .pc-writing")
        page.click("#pc-stop")
        page.wait_for_selector("#pc-note .pc-good")
    assert page.input_value("#pc-say textarea") == "Tell me a long story."
    assert len(bubbles(page)) == 1
    npc_id = call(url, "npcs")["npcs"][0]["npc_id"]
    assert call(url, "session", player_id=player_of(page), npc_id=npc_id)["version"] == 0


def test_errors_are_plain_and_nothing_is_lost(visit, url):
    page = visit(url)
    page.press("#pc-say textarea", "Enter")
    page.wait_for_selector("#pc-note .pc-bad")
    assert "text is empty" in page.inner_text("#pc-note")
    page.fill("#pc-game-state textarea", "door is open")
    page.fill("#pc-say textarea", "Is the door open?")
    page.wait_for_selector("#pc-game-state-error .pc-bad")
    page.press("#pc-say textarea", "Enter")
    page.wait_for_function("document.querySelector('#pc-note').innerText.includes('line 1')")
    assert page.input_value("#pc-say textarea") == "Is the door open?"
    page.fill("#pc-game-state textarea", "door_open = true")
    page.press("#pc-say textarea", "Enter")
    settled(page)
    assert len(bubbles(page)) == 3
    assert not page.locator("#pc-game-state-error .pc-bad").is_visible()


def test_a_preset_meets_the_conditions_so_that_the_flag_fires(visit, url):
    page = visit(url)
    talks_to(page, "Silvia")
    choose(page, "pc-preset", "in_progress · give_item")
    page.wait_for_selector("#pc-will-send li")
    page.click("#pc-send")
    settled(page)
    fired = page.locator(".pc-fired code").all_inner_texts()
    assert "give_item" in fired
    page.get_by_role("tab", name="API").click()
    page.wait_for_function(
        "document.querySelector('#pc-code-python').innerText.includes('predict')"
    )
    code = page.inner_text("#pc-code-python")
    assert url in code
    assert SILVIA in code
    assert player_of(page) in code
    assert "/ask_stream(" in page.inner_text(".pc-calls")


def test_markup_in_speech_stays_text(visit, url):
    page = visit(url)
    say(page, EVIL)
    assert page.locator("#pc-talk img").count() == 0
    assert bubbles(page)[1] == EVIL


def test_two_browsers_do_not_share_a_session_and_a_reload_keeps_it(visit, url):
    first, second = visit(url), visit(url)
    say(first, "I was here first.")
    assert player_of(first) != player_of(second)
    second.reload()
    second.wait_for_selector("#pc-card h2")
    assert len(bubbles(second)) == 1
    player = player_of(first)
    first.reload()
    first.wait_for_selector("#pc-card h2")
    assert player_of(first) == player
    assert "I was here first." in bubbles(first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(visit, url, scheme):
    page = visit(url, viewport={"width": 390, "height": 844}, color_scheme=scheme, locale="ko-KR")
    say(page, "안녕하세요. 여기가 어디인가요?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.inner_text("#pc-send") == KO["send"]
    assert KO["this_turn"] in page.inner_text("#pc-inspector")
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark is (scheme == "dark")
    tops = [
        page.locator(f"#{one}").bounding_box()["y"] for one in ("pc-chat", "pc-turn", "pc-scene")
    ]
    assert tops == sorted(tops)


def test_starting_is_shown_and_the_process_stops_when_asked(visit, tmp_path: Path):
    ready = tmp_path / "ready"
    process, url = start(tmp_path / "data", "--hold", str(ready))
    try:
        page = visit(url, ready=False)
        page.wait_for_selector("#pc-status [role=progressbar]")
        page.wait_for_selector("#pc-card h2")
        page.fill("#pc-say textarea", "Hello?")
        ready.touch()
        page.wait_for_selector("#pc-status .pc-good")
        assert page.input_value("#pc-say textarea") == "Hello?"
        page.context.close()
    finally:
        code = stop(process)
    assert code == 0


# The studio around the chat


def test_a_session_branches_saves_loads_and_exports(visit, url, tmp_path: Path):
    page = visit(url, accept_downloads=True)
    talks_to(page, "Silvia")
    say(page, "Good evening.")
    say(page, "I am sorry for your loss.")
    page.wait_for_selector(".pc-plot svg")
    settled(page)
    first = player_of(page)
    page.click("#pc-files button.label-wrap")
    saved = _downloaded(page, "#pc-save", tmp_path / "session.json")
    assert json.loads(saved)["player_id"] == first
    transcript = _downloaded(page, "#pc-export-md", tmp_path / "talk.md")
    assert "**Player:** I am sorry for your loss." in transcript
    assert transcript.count("> trust") == 2
    turns = json.loads(_downloaded(page, "#pc-export-json", tmp_path / "talk.json"))["turns"]
    assert [one["player"] for one in turns] == ["Good evening.", "I am sorry for your loss."]
    page.click("#pc-branch")
    page.wait_for_selector("#pc-note .pc-good")
    assert player_of(page) != first
    say(page, "What if I had said this instead?")
    page.wait_for_function("document.querySelectorAll('#pc-talk [data-testid=user]').length === 3")
    settled(page)
    page.set_input_files("#pc-files input[type=file]", tmp_path / "session.json")
    page.wait_for_function(
        f"document.querySelector('#pc-player textarea, #pc-player input').value === '{first}'"
    )
    assert len(bubbles(page)) == 5
    (tmp_path / "broken.json").write_text("[1", encoding="utf-8")
    page.set_input_files("#pc-files input[type=file]", tmp_path / "broken.json")
    page.wait_for_selector("#pc-note .pc-bad")
    assert player_of(page) == first


def _downloaded(page: Any, button: str, path: Path) -> str:
    with page.expect_download() as coming:
        page.click(button)
    coming.value.save_as(path)
    return path.read_text(encoding="utf-8")


def test_retry_replaces_the_last_turn_and_keys_do_what_buttons_do(visit, url):
    page = visit(url)
    talks_to(page, "Hedda")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#pc-note .pc-bad")
    say(page, "Good morning.")
    seed = page.inner_text("#pc-inspector .pc-small")
    page.press("#pc-say textarea", "Control+Enter")
    page.wait_for_function(
        "before => document.querySelector('#pc-inspector .pc-small')?.innerText !== before",
        arg=seed,
    )
    settled(page)
    assert len(bubbles(page)) == 3
    session = call(url, "session", player_id=player_of(page), npc_id=SMITH)
    assert [turn["player"] for turn in session["history"]] == ["Good morning."]
    page.fill("#pc-say textarea", "Tell me a long story.")
    with endless_lines(url):
        page.click("#pc-send")
        page.wait_for_selector("#pc-inspector .pc-writing")
        page.keyboard.press("Escape")
        page.wait_for_selector("#pc-note .pc-good")
    assert page.input_value("#pc-say textarea") == "Tell me a long story."


def test_flags_and_lore_say_what_a_flag_means_and_what_is_missing(visit, url):
    page = visit(url)
    talks_to(page, "Silvia")
    page.get_by_role("tab", name=EN["tab_knowledge"]).click()
    page.wait_for_selector("#pc-kn-documents tbody tr")
    choose(page, "pc-kn-stage", "in_progress")
    page.click("#pc-kn-ask")
    page.wait_for_selector("#pc-kn-found .pc-good")
    assert "gold_necklace" in page.inner_text("#pc-kn-found .pc-good")
    assert page.locator("#pc-kn-found tbody tr").count() == 5
    page.get_by_role("tab", name=EN["tab_model"]).click()
    page.wait_for_selector("#pc-model button.label-wrap")


def test_the_prompt_is_shown_with_its_markers(visit, url):
    page = visit(url)
    talks_to(page, "Silvia")
    page.fill("#pc-say textarea", "Is that his photograph?")
    page.click("#pc-prompt button.label-wrap")
    page.click("#pc-prompt-show")
    page.wait_for_selector("#pc-prompt-text pre")
    shown = page.inner_text("#pc-prompt-text pre")
    assert "<PLAYER>Is that his photograph?" in shown
    assert shown.count("<STATE>") == 1
    assert len(bubbles(page)) == 1


def test_a_threshold_is_weighed_written_and_taken_back(visit, url):
    page = visit(url)
    talks_to(page, "Silvia")
    page.get_by_role("tab", name=EN["tab_model"]).click()
    # Each choice is awaited before the next: a late answer would put the slider back.
    for field, option in [
        ("pc-th-stage", "completed"),
        ("pc-th-stage", "in_progress"),
        ("pc-th-flag", "give_item"),
    ]:
        page.wait_for_selector("#pc-th-cost .pc-note")
        choose(page, field, option)
        page.wait_for_function(
            f"document.querySelector('#pc-th-cost .pc-note')?.innerText.includes('{option}')"
        )
    page.fill("#pc-th-slider input[type=number]", "0.91")
    page.press("#pc-th-slider input[type=number]", "Tab")
    page.wait_for_function("document.querySelector('#pc-th-cost b')?.innerText === '0.91'")
    page.click("#pc-th-save")
    page.wait_for_selector("#pc-th-told .pc-good")
    assert "mother_abandoned_factory.json" in page.inner_text("#pc-th-told")
    rule = call(url, "npc_file", npc_id=SILVIA)["npc"]["stages"]["in_progress"]["flags"][
        "give_item"
    ]
    assert rule["threshold"] == 0.91
    page.click("#pc-th-drop")
    page.wait_for_function("!document.querySelector('#pc-th-cost').innerText.includes('NPC file')")
    rule = call(url, "npc_file", npc_id=SILVIA)["npc"]["stages"]["in_progress"]["flags"][
        "give_item"
    ]
    assert "threshold" not in rule


def test_the_plot_begins_where_the_first_turn_found_the_player():
    steps = [journey.step("Hi.", result()), journey.step("You.", result())]
    assert journey.plot(steps[:1], "en") == ""
    drawn = journey.plot(steps, "en")
    assert "Trust +0.10, +0.23, +0.23" in drawn or "Trust +0.10, +0.22, +0.22" in drawn
    assert drawn.count("<polyline") == 2


def test_a_transcript_keeps_markup_harmless_and_says_what_was_decided():
    talk = [message("assistant", "Hm."), message("user", EVIL), message("assistant", "Take *it*.")]
    told = journey.transcript_markdown("Hedda", talk, [journey.step(EVIL, result())])
    assert "\\<img" in told
    assert "Take \\*it\\*." in told
    assert told.count("> trust") == 1
    assert "give\\_item: key" in told
    assert "stage first → second" in told


def test_how_the_player_is_taken_is_told_with_its_share():
    drawn = render.turn_view(result(acts={"comfort": 0.62, "help": 0.2}), "ko")
    assert f"{KO['act_comfort']} <b>62%</b>" in drawn
    assert "pc-acts" not in render.turn_view(result(), "ko")


def typed(page: Any, field: str, text: str) -> None:
    """Put text into a field and leave it."""
    box = page.locator(f"#{field} textarea, #{field} input")
    box.fill(text)
    box.blur()


def gives_a_clock(page: Any) -> None:
    """Write a rule with the pick lists: a clock for whoever has the lens and a little trust."""
    page.click("#pc-ed-rules button.label-wrap")
    assert page.input_value("#pc-ru-stage input") == "not_started"
    choose(page, "pc-ru-flag", "give_item")
    page.wait_for_function(
        "document.querySelector('#pc-ru-text').querySelector('textarea, input').value === ''"
    )
    typed(page, "pc-ru-text", "Mira hands over a brass clock.")
    shown_in_code(page, "Mira hands over a brass clock.")
    for field, text, seen in [
        ("value", "brass_clock", "brass_clock"),
        ("items", "pocket_lens", "pocket_lens"),
        ("min-trust", "0.05", '"min_trust": 0.05'),
    ]:
        page.fill(f"#pc-ru-{field} input", text)
        page.press(f"#pc-ru-{field} input", "Enter")
        page.locator(f"#pc-ru-{field} input").blur()
        shown_in_code(page, seen)
    page.wait_for_selector("#pc-ed-told .pc-good")


def shown_in_code(page: Any, text: str) -> None:
    """Wait until the NPC's file holds `text`; of a long one the editor draws what is in sight."""
    page.wait_for_function(
        "text => { const code = document.querySelector('#pc-ed-code .cm-content');"
        " return (code.cmTile ?? code.cmView).view.state.doc.toString().includes(text); }",
        arg=text,
    )


def test_an_npc_is_written_saved_talked_to_and_deleted(visit, tmp_path: Path):
    folder = tmp_path / "npcs"
    shutil.copytree(ROOT / "npc_configs", folder)
    process, url = start(tmp_path / "data", "--npcs", str(folder))
    try:
        page = visit(url)
        page.get_by_role("tab", name="NPCs").click()
        page.wait_for_function("document.querySelector('#pc-ed-code').innerText.includes('schema')")
        page.fill("#pc-ed-name textarea, #pc-ed-name input", "Mira")
        page.click("#pc-ed-new")
        page.wait_for_function("document.querySelector('#pc-ed-code').innerText.includes('mira')")
        typed(page, "pc-ed-persona-role", "clock mender")
        page.wait_for_function(
            "document.querySelector('#pc-ed-code').innerText.includes('clock mender')"
        )
        typed(page, "pc-ed-persona-backstory", "")
        page.wait_for_selector("#pc-ed-told .pc-bad")
        assert "persona.backstory" in page.inner_text("#pc-ed-told")
        typed(page, "pc-ed-persona-backstory", "Mira mends clocks and hears everything.")
        page.wait_for_selector("#pc-ed-told .pc-good")
        gives_a_clock(page)
        page.click("#pc-try button.label-wrap")
        page.check("#pc-try-met input")
        page.fill("#pc-try-say textarea, #pc-try-say input", "May I have the clock?")
        page.click("#pc-try-send")
        page.wait_for_selector("#pc-try-told .pc-flags")
        assert "brass_clock" in page.inner_text("#pc-try-told")
        assert page.locator("#pc-try-talk [data-testid=bot]").count() == 1
        assert not (folder / "mira.json").exists()
        page.click("#pc-ed-save")
        page.wait_for_function(
            "document.querySelector('#pc-ed-told').innerText.includes('mira.json')"
        )
        rule = json.loads((folder / "mira.json").read_text("utf-8"))["stages"]["not_started"]
        assert rule["flags"]["give_item"] == {
            "text": "Mira hands over a brass clock.",
            "value": "brass_clock",
            "when": {"items": ["pocket_lens"], "min_trust": 0.05},
        }
        page.get_by_role("tab", name="Chat").click()
        talks_to(page, "Mira")
        say(page, "Where should I look?")
        assert len(bubbles(page)) == 2
        choose(page, "pc-preset", "not_started · give_item")
        page.wait_for_selector("#pc-will-send li")
        say(page, "May I have the clock?")
        page.wait_for_function(
            "document.querySelector('#pc-inspector').innerText.includes('brass_clock')"
        )
        settled(page)
        assert "give_item" in page.locator(".pc-fired code").all_inner_texts()
        page.click("#pc-undo")
        page.wait_for_function(
            "document.querySelectorAll('#pc-talk [data-testid=user]').length === 1"
        )
        page.get_by_role("tab", name=EN["tab_knowledge"]).click()
        choose(page, "pc-kn-gap", "lore")
        typed(page, "pc-kn-text", "Every clock in town was mended by Mira.")
        page.click("#pc-kn-mend")
        page.wait_for_selector("#pc-kn-told .pc-good")
        page.wait_for_function(
            "document.querySelector('#pc-kn-documents').innerText.includes('Every clock')"
        )
        page.get_by_role("tab", name="NPCs").click()
        choose(page, "pc-ed-form", "Character Card V2")
        card = _downloaded(page, "#pc-ed-export", tmp_path / "mira.card.json")
        assert json.loads(card)["data"]["name"] == "Mira"
        with page.expect_file_chooser() as chooser:
            page.click("#pc-ed-import")
        chooser.value.set_files(tmp_path / "mira.card.json")
        page.wait_for_function(
            f"document.querySelector('#pc-ed-told').innerText.includes('{EN['imported']}')"
        )
        choose(page, "pc-ed-pick", "mira")
        shown_in_code(page, "Every clock in town")
        page.click("#pc-ed-delete")
        page.wait_for_selector("#pc-ed-told .pc-bad")
        assert (folder / "mira.json").is_file()
        choose(page, "pc-ed-pick", "mira")
        page.check("#pc-ed-sure input")
        page.click("#pc-ed-delete")
        page.wait_for_function(
            "document.querySelector('#pc-ed-told').innerText.includes('mira.json')"
        )
        assert not (folder / "mira.json").exists()
        assert (folder / ".backup" / "mira.json").is_file()
        page.context.close()
    finally:
        stop(process)


def test_a_scene_is_recorded_from_the_chat_and_run(visit, tmp_path: Path):
    folder = tmp_path / "npcs"
    folder.mkdir()
    shutil.copy(ROOT / "npc_configs" / f"{SMITH}.json", folder)
    process, url = start(tmp_path / "data", "--npcs", str(folder))
    try:
        page = visit(url)
        page.get_by_role("tab", name=EN["tab_scenes"]).click()
        page.click("#pc-sc-record")
        page.wait_for_selector("#pc-sc-told .pc-bad")
        page.get_by_role("tab", name="Chat").click()
        say(page, "Good morning, Hedda.")
        page.get_by_role("tab", name=EN["tab_scenes"]).click()
        typed(page, "pc-sc-name", "a morning")
        page.click("#pc-sc-record")
        page.wait_for_selector("#pc-sc-told .pc-good")
        assert (folder / "scenes" / f"{SMITH}.json").is_file()
        page.click("#pc-sc-run")
        page.wait_for_selector("#pc-sc-told tbody tr")
        assert "a morning" in page.inner_text("#pc-sc-told tbody")
        assert f"1 {EN['scenes_passed']}" in page.inner_text("#pc-sc-told .pc-good")
        page.context.close()
    finally:
        stop(process)
