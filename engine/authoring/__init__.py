"""Writing NPC files from the page and through the API: check, save with a backup, delete, bring over.

    files.py     the folder: read, check, save, delete
    template.py  a new NPC, ready to be filled in
    cards.py     Character Card V2 and V3 → NPC file, and back (V2)
    containers.py  what a card may come in: JSON, PNG, .charx; sizes are limited, nothing is trusted
    stubs.py     Ink and Yarn: the NPC's standing as variables, its flags as commands

Knows nothing of sessions, models or the page.
"""

from engine.authoring.cards import card_of, npc_of_card
from engine.authoring.containers import read_upload
from engine.authoring.files import NPCFolder
from engine.authoring.stubs import ink_stub, yarn_stub
from engine.authoring.template import new_npc

__all__ = [
    "NPCFolder",
    "card_of",
    "ink_stub",
    "new_npc",
    "npc_of_card",
    "read_upload",
    "yarn_stub",
]
