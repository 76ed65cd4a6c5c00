"""A new NPC that is valid as it stands, with one flag to show how flags are written."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_WORDS = {
    "en": {
        "backstory": "{name} has lived here for years and knows everybody.",
        "description": "The player meets {name} for the first time.",
        "hint": "{name} tells the player where to look.",
        "fallback": "Hm. Say that again?",
        "keywords": ["where", "help"],
    },
    "ko": {
        "backstory": "{name}은(는) 오래전부터 이곳에 살았고 모두를 안다.",
        "description": "플레이어가 {name}을(를) 처음 만난다.",
        "hint": "{name}이(가) 어디를 찾아봐야 하는지 알려 준다.",
        "fallback": "음. 다시 말해 주겠어요?",
        "keywords": ["어디", "도와"],
    },
}


def new_npc(name: str, language: str = "en", taken: Collection[str] = ()) -> dict[str, Any]:
    """Return an NPC file's data.

    Args:
        name: of the NPC; its id is made from it.
        language: "en" or "ko".
        taken: ids that are in use.
    """
    language = language if language in _WORDS else "en"
    words = _WORDS[language]
    name = " ".join(name.split())[:60] or "New NPC"

    def told(key: str) -> str:
        return str(words[key]).format(name=name)

    return {
        "schema_version": 1,
        "id": free_id(name, taken),
        "language": language,
        "persona": {"name": name, "role": "", "style": "neutral", "backstory": told("backstory")},
        "defaults": {"quest_stage": "not_started", "trust": 0.1, "relationship": 0.1},
        "lore": [],
        "stages": {
            "not_started": {
                "description": told("description"),
                "flags": {
                    "give_hint": {
                        "when": {"min_trust": 0.2, "said": {"keywords": words["keywords"]}},
                        "value": "first_hint",
                        "text": told("hint"),
                    }
                },
            },
            "any": {"fallback": [{"text": told("fallback")}]},
        },
    }


def free_id(name: str, taken: Collection[str] = ()) -> str:
    """Return an id made of `name`: lower case, digits and underscores, not in `taken`."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:50] or "npc"
    if plain not in taken:
        return plain
    number = 2
    while f"{plain}_{number}" in taken:
        number += 1
    return f"{plain}_{number}"
