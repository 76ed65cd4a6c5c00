"""The rooms: what is seen, what lies there, what can be done, who can be talked to. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deed:
    """Something that can be done in a room: the words for it, and what the engine calls it.

    `needs` are items; `state` is set in the game state that conditions look at.
    """

    words: str
    action: str
    told: str
    needs: tuple[str, ...] = ()
    state: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """A room: its text, its NPC, its items and deeds, and the ways out by name."""

    about: str
    npc_id: str
    npc: str
    ways: dict[str, str]
    items: tuple[str, ...] = ()
    deeds: tuple[Deed, ...] = ()


ROOMS: dict[str, Room] = {
    "mill": Room(
        about="A burnt mill by the river. A woman stands at the fence.",
        npc_id="mother_abandoned_factory",
        npc="Silvia",
        ways={"village": "village"},
        deeds=(
            Deed(
                "search",
                "visited_factory",
                "Under a bench lies a photograph of a party. You take it along.",
            ),
        ),
    ),
    "village": Room(
        about="A forge under an oak. Sparks; a big woman with a hammer.",
        npc_id="blacksmith_village_center",
        npc="Hedda",
        ways={"mill": "mill", "forest": "forest"},
        items=("broken_sword", "river_iron"),
        deeds=(
            Deed("work", "worked_bellows", "You pump the bellows until your arms burn."),
            Deed(
                "kindle",
                "lit_hearth",
                "You lay river iron by the hearth, and it catches.",
                needs=("river_iron",),
                state={"great_hearth_lit": True},
            ),
        ),
    ),
    "forest": Room(
        about="Moss, and a hut of branches. An old man feeds a fox.",
        npc_id="forest_hermit",
        npc="the hermit",
        ways={"village": "village"},
        items=("spring_water",),
        deeds=(
            Deed(
                "free",
                "freed_fox",
                "You open a snare, and a fox limps off.",
                state={"moth_glade_open": True},
            ),
        ),
    ),
}

FOUND_BY = {"visited_factory": "photo_forgotten_party"}
"""What a deed puts into the player's hands."""
