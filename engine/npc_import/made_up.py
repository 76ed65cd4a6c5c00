"""Lines and texts that stand in where the source has none, in each language.

They are neutral on purpose: every use is warned about, so that a designer writes a better one.
"""

from __future__ import annotations

_MADE_LINES = {
    "en": {
        "attack": "Enough. One more word like that and you will regret it.",
        "leave": "This talk is over. I am going.",
        "angry": "I will not be spoken to like that.",
        "deflect": "I would rather not speak of that now.",
        "": "I have nothing to say to that.",
    },
    "ko": {
        "attack": "그만해요. 한마디만 더 하면 후회하게 될 거예요.",
        "leave": "이 이야기는 여기까지 해요. 저는 이만 갈게요.",
        "angry": "그런 식으로 말하지 마세요. 듣고 있지 않겠어요.",
        "deflect": "그 이야기는 지금 하고 싶지 않아요.",
        "": "그 말에는 드릴 말씀이 없어요.",
    },
}
"""Stand-in lines by language, then by the action or emotion that the source names."""

_MADE_TEXTS = {
    "en": {
        "give_item": "{name} gives the player: {value}",
        "give_hint": "{name} gives the player a hint: {value}",
        "npc_main_story": "{name} tells a part of the main story: {value}",
        "quest_stage_change": "The quest moves on to: {value}",
        "npc_action": "{name} does something: {value}",
        "change_player_state": "The player's state changes: {value}",
        "change_game_state": "The state of the world changes: {value}",
        "unlock_hidden_path": "A hidden path opens: {value}",
    },
    "ko": {
        "give_item": "{name}의 선물을 플레이어가 받는다: {value}",
        "give_hint": "{name}의 힌트를 플레이어가 듣는다: {value}",
        "npc_main_story": "{name}의 이야기가 드러난다: {value}",
        "quest_stage_change": "퀘스트가 다음 단계로 넘어간다: {value}",
        "npc_action": "{name}의 행동이 일어난다: {value}",
        "change_player_state": "플레이어의 상태가 바뀐다: {value}",
        "change_game_state": "세계의 상태가 바뀐다: {value}",
        "unlock_hidden_path": "숨겨진 길이 열린다: {value}",
    },
}
"""Sentences for people by language, then by flag, with the NPC's name and the flag's value."""


def made_line(language: str, *hints: str | None) -> str:
    """Return the stand-in line of the first action or emotion known, else the plainest."""
    lines = _MADE_LINES[language]
    return next((lines[hint] for hint in hints if hint in lines), lines[""])


def made_text(language: str, flag: str, *, name: str, value: str | None) -> str:
    """Return the sentence that tells people what a flag of the NPC `name` does."""
    return _MADE_TEXTS[language][flag].format(name=name, value=value or "").rstrip(" :")
