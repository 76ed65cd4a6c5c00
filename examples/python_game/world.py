"""The rooms: what is seen, what lies there, what can be done, who can be talked to. Pure values.

Items, deeds and facts carry the names that the conditions in `npc_configs/` ask for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deed:
    """Something that can be done in a room.

    Args:
        action: what the engine calls it.
        told: what the player reads.
        needs: an item without which it cannot be done.
        after: a fact of the game state without which it cannot be done.
        finds: an item that it puts into the player's hands.
        uses_up: whether the needed item is gone afterwards.
    """

    action: str
    told: str
    needs: str | None = None
    after: str | None = None
    finds: str | None = None
    uses_up: bool = False


@dataclass(frozen=True)
class Room:
    """A room: its text, its NPC, the ways out, the items that lie in it, its deeds by their words."""

    about: str
    npc_id: str
    npc: str
    ways: tuple[str, ...]
    items: tuple[str, ...]
    deeds: dict[str, Deed]


START = "mill"

ROOMS: dict[str, Room] = {
    "mill": Room(
        about="A burned-out thread mill on a canal. A woman keeps watch in the gatehouse.",
        npc_id="mother_abandoned_factory",
        npc="Silvia",
        ways=("village",),
        items=(),
        deeds={
            "search": Deed(
                "visited_factory",
                "You climb through the halls to the wash house. In locker 19 lies a photograph.",
                finds="photo_forgotten_party",
            ),
            "crawl": Deed(
                "walked_coal_tunnel",
                "You stoop through the coal tunnel. On its wall, in chalk: eleven strokes, and "
                "'Mum, go home.'",
                after="coal_tunnel_open",
            ),
        },
    ),
    "village": Room(
        about="A forge under an oak, its great hearth cold. In the house beside it somebody coughs.",
        npc_id="blacksmith_village_center",
        npc="Hedda",
        ways=("mill", "forest"),
        items=("broken_sword",),
        deeds={
            "pump": Deed(
                "worked_bellows",
                "You pump the bellows until your arms burn as the iron does.",
                after="great_hearth_lit",
            ),
            "heal": Deed(
                "gave_herb_to_sick",
                "The sick child next door drinks, sleeps, and wakes without the fever.",
                needs="lanternwort_cutting",
                uses_up=True,
            ),
        },
    ),
    "forest": Room(
        about="A ford, the axle of a drowned mill in it. A hermit sits among the standing stones.",
        npc_id="forest_hermit",
        npc="Orrin",
        ways=("village",),
        items=("river_iron", "spring_water"),
        deeds={"free": Deed("freed_fox", "You open a poacher's snare, and a red fox limps off.")},
    ),
}

TRADED: dict[str, tuple[str, ...]] = {
    "mended_sword": ("broken_sword", "river_iron"),
    "lanternwort_cutting": ("spring_water",),
}
"""What a player gives up for an item that an NPC hands over."""
