"""Import of the older flat list of NPC documents into NPC files.

The older form keeps an NPC as many small documents, each with `id`, `type` and `npc_id`:

    trigger_def             conditions and delta policy of a stage; the flags it allows
    flag_def                threshold and examples of a flag (given effect by a trigger_def only)
    dialogue_turn           an example turn; a `flag_value` that is a name is what the flag gives
    fallback                how the NPC behaves when nothing is granted
    forbidden_trigger_list  keywords and sentences that never reach the model
    trigger_meta            the reaction to a forbidden keyword, matched by that keyword
    lore, description, npc_persona, main_res_validate

What it lacks is filled in and warned about: a player starts at the first stage and location named,
with trust and relationship 0; a line, a flag's text, a backstory or a missing delta policy gets a
neutral one. What has no counterpart here is left out and warned about. What would loosen a
condition (an unknown `required_…`) is an error instead.

    python -m engine.npc_import SOURCE.json [--out npc_configs/] [--force]

Knows nothing of the engine that runs the NPCs.

    documents.py   the models of the older documents, and checking one
    source.py      one NPC's documents, with the warnings that gather on the way
    made_up.py     the lines and texts that stand in where the source has none
    mapping.py     a list of documents → NPCs; persona, defaults, lore
    stages.py      one quest stage: description, delta policy, example turns, fallback lines
    rules.py       the flags of a stage: who allows them, when, and what they give
    forbidden.py   forbidden words and the reactions to them
    files.py       reading the list, writing NPC files
    cli.py         the command line
"""

from engine.npc_import.cli import main
from engine.npc_import.files import import_file, write_npcs
from engine.npc_import.mapping import DEFAULT_STAGE, ImportResult, import_documents

__all__ = [
    "DEFAULT_STAGE",
    "ImportResult",
    "import_documents",
    "import_file",
    "main",
    "write_npcs",
]
