"""The player's state, and what deeds and turns of talk do to it.

Knows nothing of terminals or of the engine's address.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from examples.python_game.world import ROOMS, START, TRADED, Room

Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """Something said, as every try of it is sent: the engine knows a retry by its id and context."""

    npc_id: str
    text: str
    context: Json
    turn_id: str


@dataclass
class Game:
    """All that a save file holds, but for what the NPCs remember.

    `taken` lists what no longer lies about, `stages` each NPC's quest stage, `trust` where it stood
    last, `applied` the ids of effects that have happened, `pending` a turn without an answer yet.
    """

    player_id: str
    room: str = START
    items: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    game_state: Json = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    trust: dict[str, float] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    pending: Turn | None = None

    @property
    def here(self) -> Room:
        """The room the player stands in."""
        return ROOMS[self.room]

    def go(self, way: str) -> str:
        """Walk to another room."""
        if way not in self.here.ways:
            return f"There is no way to {way!r}; there are: {', '.join(self.here.ways)}."
        self.room = way
        return self.look()

    def look(self) -> str:
        """Say what there is."""
        lying = [item for item in self.here.items if item not in self.taken]
        seen = f" You see: {', '.join(lying)}." if lying else ""
        ways, deeds = ", ".join(self.here.ways), ", ".join(self.here.deeds)
        return (
            f"{self.here.about}{seen} (go {ways}; do {deeds}; or say something to {self.here.npc})"
        )

    def take(self, item: str) -> str:
        """Pick something up."""
        item = item.replace(" ", "_")
        if item not in self.here.items or item in self.taken:
            return f"There is no {item!r} here."
        self._find(item)
        return f"You take the {shown(item)}."

    def do(self, words: str) -> str:
        """Do one of the room's deeds."""
        deed = self.here.deeds.get(words)
        if deed is None:
            return f"You cannot {words} here."
        if deed.needs and deed.needs not in self.items:
            return f"You would need: {shown(deed.needs)}."
        if deed.after and not self.game_state.get(deed.after):
            return "Not yet; talk first."
        if deed.needs and deed.uses_up:
            self.items.remove(deed.needs)
        if deed.action not in self.actions:
            self.actions.append(deed.action)
        if deed.finds:
            self._find(deed.finds)
        return deed.told

    def say(self, text: str) -> Turn:
        """Say something to the room's NPC: the turn to play, pending until `apply` or `drop`."""
        npc_id = self.here.npc_id
        context = {
            "location": self.room,
            "items": [*self.items],
            "actions": [*self.actions],
            "game_state": {**self.game_state},
        }
        if npc_id in self.stages:
            context["quest_stage"] = self.stages[npc_id]
        self.pending = Turn(npc_id, text, context, uuid.uuid4().hex)
        return self.pending

    def drop(self) -> None:
        """Forget the pending turn: it was not played and never will be."""
        self.pending = None

    def apply(self, result: Json) -> list[str]:
        """Let a turn's decision happen; return what the player is told of it.

        The engine adds each delta to the trust it keeps; the game takes over what came of it.
        """
        meta = result["meta"]
        self.pending = None
        self.stages[meta["npc_id"]] = meta["next_quest_stage"]
        self.trust[meta["npc_id"]] = meta["state"]["trust"]
        told = [f"trust {meta['state']['trust']:+.2f} ({result['delta']['trust']:+.2f})"]
        for action in meta["actions"]:
            if action["effect_id"] not in self.applied:
                self.applied.append(action["effect_id"])
                self._happen(action["flag"], action["value"])
                told.append(action["text"])
        return told

    def _happen(self, flag: str, value: str | None) -> None:
        """Carry out an action; what is not here is only told."""
        if value is None:
            return
        if flag == "give_item":
            self._find(value)
            self.items = [item for item in self.items if item not in TRADED.get(value, ())]
        elif flag == "change_game_state":
            self.game_state[value] = True
        elif flag == "unlock_hidden_path":
            self.game_state[f"{value}_open"] = True

    def _find(self, item: str) -> None:
        if item not in self.taken:
            self.taken.append(item)
            self.items.append(item)


def shown(item: str) -> str:
    """Return an item's name as a player reads it."""
    return item.replace("_", " ")


def save_game(path: Path, game: Game, minds: Json) -> None:
    """Write game and NPCs' minds (from the engine's `/save`) into one file, whole or not at all."""
    fresh = path.with_name(f"{path.name}.part")
    data = {"game": asdict(game), "minds": minds}
    fresh.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    fresh.replace(path)


def load_game(path: Path) -> tuple[Game, Json]:
    """Read a save file: the game, and the minds for the engine's `/load`.

    Raises:
        ValueError: it is no save file of this game.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        held, minds = data["game"], data["minds"]
        pending = Turn(**held["pending"]) if held["pending"] else None
        game = Game(**{**held, "pending": pending})
        if game.room not in ROOMS:
            raise KeyError(game.room)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ValueError(f"{path} is no save file of this game ({exc})") from exc
    return game, minds
