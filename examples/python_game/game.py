"""The player's state, and what deeds and turns of talk do to it. Knows nothing of terminals."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from examples.python_game.world import FOUND_BY, ROOMS, Room

Json = dict[str, Any]


@dataclass
class Game:
    """All that a save file holds, but for what the NPCs remember.

    `stages` is each NPC's quest stage, `standing` trust as the engine last told it, `applied` the ids
    of effects that have happened: a turn that is seen twice gives its items once.
    """

    player_id: str
    room: str = "mill"
    items: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    game_state: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    standing: dict[str, float] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)

    @property
    def here(self) -> Room:
        """The room the player stands in."""
        return ROOMS[self.room]

    def context(self) -> Json:
        """Return what the engine is to know of the game."""
        npc_id = self.here.npc_id
        stage = {"quest_stage": self.stages[npc_id]} if npc_id in self.stages else {}
        return {
            **stage,
            "location": self.room,
            "items": self.items,
            "actions": self.actions,
            "game_state": self.game_state,
        }

    def go(self, way: str) -> str:
        """Walk to another room."""
        if way not in self.here.ways:
            return f"There is no way to {way!r}; there are {', '.join(self.here.ways)}."
        self.room = self.here.ways[way]
        return self.look()

    def look(self) -> str:
        """Say what there is."""
        lying = [one for one in self.here.items if one not in self.items]
        seen = f" You see: {', '.join(lying)}." if lying else ""
        deeds = ", ".join(deed.words for deed in self.here.deeds)
        return f"{self.here.about}{seen} (ways: {', '.join(self.here.ways)}; you can: {deeds})"

    def take(self, item: str) -> str:
        """Pick something up."""
        if item not in self.here.items or item in self.items:
            return f"There is no {item!r} here."
        self.items.append(item)
        return f"You take the {item.replace('_', ' ')}."

    def do(self, words: str) -> str:
        """Do one of the room's deeds."""
        deed = next((one for one in self.here.deeds if one.words == words), None)
        if deed is None:
            return f"You cannot {words} here."
        missing = [item for item in deed.needs if item not in self.items]
        if missing:
            return f"You would need: {', '.join(missing)}."
        if deed.action not in self.actions:
            self.actions.append(deed.action)
        self.game_state.update(deed.state)
        found = FOUND_BY.get(deed.action)
        if found and found not in self.items:
            self.items.append(found)
        return deed.told

    def apply(self, result: Json) -> list[str]:
        """Let a turn's decision happen; return what the player is told of it.

        The engine keeps trust itself; the game shows it, and carries out actions once by effect id.
        """
        meta = result["meta"]
        npc_id = meta["npc_id"]
        self.stages[npc_id] = meta["next_quest_stage"]
        self.standing[npc_id] = meta["state"]["trust"]
        told = [f"trust {meta['state_before']['trust']:+.2f} → {meta['state']['trust']:+.2f}"]
        for action in meta["actions"]:
            if action["effect_id"] in self.applied:
                continue
            self.applied.append(action["effect_id"])
            told.append(action["text"])
            value = action["value"]
            if action["flag"] == "give_item" and value and value not in self.items:
                self.items.append(value)
                told.append(f"You have: {value.replace('_', ' ')}.")
            elif action["flag"] == "change_game_state" and value:
                self.game_state[value] = True
        return told

    def save(self, path: Path, minds: Json) -> None:
        """Write game and NPCs' minds into one file, whole or not at all."""
        fresh = path.with_name(f"{path.name}.part")
        data = {"game": asdict(self), "minds": minds}
        fresh.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
        fresh.replace(path)


def load_game(path: Path) -> tuple[Game, Json]:
    """Read a save file: the game, and the minds for the engine's `/load`.

    Raises:
        ValueError: it is no save file of this game.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Game(**data["game"]), data["minds"]
    except (OSError, TypeError, KeyError) as exc:
        raise ValueError(f"{path} is no save file of this game: {exc}") from exc
