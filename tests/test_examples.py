"""The examples, played against the app with the tiny model (every permitted flag fires there)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.npc import load_folder
from examples.python_game.__main__ import SCRIPT, main
from examples.python_game.game import Game, load_game
from examples.python_game.link import Engine, TalkFailed
from examples.python_game.world import FOUND_BY, ROOMS
from tests.app_process import ROOT, served


def played(url: str, script: Path, save: Path, capsys: Any) -> str:
    assert main(["--url", url, "--script", str(script), "--save", str(save)]) == 0
    told: str = capsys.readouterr().out
    return told


def test_the_adventure_plays_by_itself_and_ends_with_things_in_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = played(served(), SCRIPT, tmp_path / "save.json", capsys)
    # The tiny model's trust moves at random; what needs none of it happens all the same.
    assert told.count("Hedda takes on the broken sword") == 1
    assert "Saved to" in told
    # Loading goes back to before the village: what was taken there is gone again.
    last = told.strip().splitlines()[-1]
    assert "photo_forgotten_party" in last
    assert "broken_sword" not in last
    assert "[trust" in told


def test_a_save_file_brings_game_and_minds_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "save.json"
    script = tmp_path / "script.txt"
    script.write_text("do search\nI found this photograph.\nsave\n", encoding="utf-8")
    played(served(), script, save, capsys)
    game, minds = load_game(save)
    assert "photo_forgotten_party" in game.items
    assert minds["player_id"] == game.player_id
    assert game.standing
    save.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="no save file"):
        load_game(save)


def test_nobody_at_the_address_is_told_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9"]) == 1
    assert "no engine at http://127.0.0.1:9" in capsys.readouterr().err


def answer(effect: str = "e1") -> dict[str, Any]:
    action = {"flag": "give_item", "value": "key", "text": "A key.", "effect_id": effect}
    state = {"trust": 0.1, "relationship": 0.0}
    meta = {"npc_id": "x", "next_quest_stage": "two", "state_before": state, "state": state}
    return {"text": "Here.", "meta": {**meta, "actions": [action]}}


def test_an_effect_happens_once_however_often_its_turn_is_seen() -> None:
    game = Game("p1")
    assert "You have: key." in game.apply(answer())
    game.items.remove("key")
    assert "You have: key." not in game.apply(answer())
    assert "You have: key." in game.apply(answer("e2"))
    assert game.stages == {"x": "two"}


class Broken:
    """A client whose first calls break or are busy; remembers the turn ids."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.turn_ids: list[str] = []

    def submit(self, **given: Any) -> Iterator[dict[str, Any]]:
        self.turn_ids.append(given["turn_id"])
        now = self._answers.pop(0)
        if isinstance(now, Exception):
            raise now
        yield {"text": "", "meta": {}}
        yield now


def test_a_retry_carries_the_same_turn_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    busy = {"error": {"message": "busy", "retryable": True}}
    client = Broken(busy, OSError("gone"), answer())
    result = Engine("", client).talk("p1", "x", "Hi.", {}, lambda _text: None)
    assert result["text"] == "Here."
    assert len(set(client.turn_ids)) == 1
    assert len(client.turn_ids) == 3
    refused = Broken({"error": {"message": "unknown NPC", "retryable": False}})
    with pytest.raises(TalkFailed, match="unknown NPC"):
        Engine("", refused).talk("p1", "x", "Hi.", {}, lambda _text: None)
    with pytest.raises(TalkFailed, match="does not answer: busy"):
        Engine("", Broken(*[busy] * 5)).talk("p1", "x", "Hi.", {}, lambda _text: None)


def test_the_world_fits_the_npc_files() -> None:
    registry = load_folder(ROOT / "npc_configs")
    for room in ROOMS.values():
        npc = registry.get(room.npc_id)
        rules = [rule for stage in npc.quest_stages for rule in npc.stage(stage).flags.values()]
        known = {item for rule in rules for item in rule.when.items}
        actions = {action for rule in rules for action in rule.when.actions}
        assert set(room.ways.values()) <= set(ROOMS)
        found = {FOUND_BY[deed.action] for deed in room.deeds if deed.action in FOUND_BY}
        assert known & {*room.items, *found}, room.npc_id
        assert actions & {deed.action for deed in room.deeds}, room.npc_id
    assert json.loads(json.dumps(Game("p1").context()))["location"] == "mill"
