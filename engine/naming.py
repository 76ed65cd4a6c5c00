"""A line that hands something over names it: what is granted in the game is granted in words.

A small model writes a line to the decision and still leaves the item out of every other one. Where it
does, the NPC adds a sentence: the rule's own, or that of an authored turn that hands the item over, or
a plain one. Pure; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.npc import NPC, FlagRule
from engine.text import fold

# Flags whose value is a thing that changes hands; others' values are words of the game alone.
_HANDS_OVER = "give_item"
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)]*\s+")
_PLAIN = {"en": "Here, take the {item}."}


def spoken_names(rule: FlagRule) -> tuple[str, ...]:
    """Return what a rule's value is called in speech: as authored, else its words and their last."""
    if rule.names or not rule.value:
        return tuple(fold(name) for name in rule.names)
    words = fold(rule.value.replace("_", " ")).split()
    return tuple(dict.fromkeys((" ".join(words), words[-1])))


def names(line: str, rule: FlagRule) -> bool:
    """Tell whether `line` names what `rule` hands over."""
    said = fold(line)
    return any(name in said for name in spoken_names(rule))


def missing_sentence(npc: NPC, stage: str, fired: Iterable[str], line: str) -> str:
    """Return the sentence that `line` lacks; "" where nothing is handed over, or it is named.

    Args:
        npc: who speaks.
        stage: of the quest.
        fired: the flags that fire.
        line: what the NPC says.
    """
    rule = npc.stage(stage).flags.get(_HANDS_OVER)
    if _HANDS_OVER not in fired or rule is None or not rule.value or names(line, rule):
        return ""
    if rule.closing:
        return rule.closing
    for turn in npc.stage(stage).turns:
        if set(turn.flags) == {_HANDS_OVER}:
            for sentence in _SENTENCE.split(turn.npc):
                if names(sentence, rule):
                    return sentence.strip()
    plain = _PLAIN.get(npc.language)
    return plain.format(item=rule.value.replace("_", " ")) if plain else ""
