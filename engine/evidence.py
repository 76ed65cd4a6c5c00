"""Evidence: what is said, held against what the game's state bears out.

    utterance ─┬─ each flag's rule at this stage ──── how near, and whether its facts are there
               └─ every item, action and fact that ── how clearly one is named that is there,
                  the NPC's conditions name            and one that is missing

"Here is your axle" is help from one who carries it and a lie from one who does not. The model reads the
state and hears the sentence, but a small one does not put the two together; cosines with the words of
the NPC's own file do, also for an NPC that no training row knows.
Knows nothing of models or sessions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine.decision import Verdict
from engine.gate import TextEncoder, same_value
from engine.npc import NPC, NPCRegistry
from engine.schema import SessionState
from engine.text import fold, fold_id
from heads.evidence import Bearing, Evidence, Named

_WORD = re.compile(r"[^\W\d_]+")
# Words that every sentence has, and endings that part forms of one word ("worked", "works").
_COMMON = re.compile(
    "a|an|and|at|be|by|for|from|i|in|is|it|me|my|of|on|that|the|this|to|with|you|your"
)
_ENDINGS = ("ing", "ed", "es", "s", "ly")
_SHORTEST_STEM = 3


@dataclass(frozen=True)
class _Thing:
    """An item, action or fact that a condition of the NPC names; `words` is its name in words."""

    kind: str
    name: str
    wanted: object

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    def there(self, state: SessionState) -> bool:
        if self.kind == "game_state":
            world = {fold_id(key): value for key, value in state.game_state.items()}
            return same_value(self.wanted, world.get(self.name))
        return self.name in {fold_id(name) for name in getattr(state, self.kind)}


def gather_evidence(
    npc: NPC,
    state: SessionState,
    utterance: str,
    verdicts: Mapping[str, Verdict],
    encoder: TextEncoder,
) -> Evidence:
    """Return what the state says of an utterance.

    Args:
        npc: in the language that it is spoken to.
        state: before the turn.
        utterance: what the player says.
        verdicts: the gate's, of the flags of the state's stage.
        encoder: gives unit vectors; one that remembers saves most of the work.
    """
    rules = npc.stage(state.quest_stage).flags
    texts = [text for flag in rules for text in _texts(npc, state.quest_stage, flag)]
    things = list(dict.fromkeys(_things(npc)))
    vectors = encoder.encode([utterance, *texts, *(thing.words for thing in things)])
    near = np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)
    bearings = {
        flag: Bearing(verdicts[flag].facts, float(near[2 * at]), float(near[2 * at + 1]))
        for at, flag in enumerate(rules)
    }
    said = _stems(utterance)
    highest = dict[tuple[str, bool], float]()
    for thing, cosine in zip(things, near[2 * len(rules) :], strict=True):
        there = thing.there(state)
        named = _stems(thing.words)
        share = len(named & said) / len(named) if named else 0.0
        for what, value in (("near", float(cosine)), ("said", share)):
            highest[what, there] = max(highest.get((what, there), 0.0), value)
    told = (highest.get(key, 0.0) for key in _ORDER)
    return Evidence(bearings, Named(*told))


# As the fields of `Named` stand.
_ORDER = (("near", True), ("near", False), ("said", True), ("said", False))


def warm_evidence(registry: NPCRegistry, encoder: TextEncoder) -> None:
    """Let an encoder that remembers read the words of all NPCs, so that no first turn waits for it."""
    texts = [
        text
        for npc in registry.all()
        for stage in npc.quest_stages
        for flag in npc.stage(stage).flags
        for text in _texts(npc, stage, flag)
    ]
    texts += [thing.words for npc in registry.all() for thing in _things(npc)]
    if texts:
        encoder.encode(list(dict.fromkeys(texts)))


def _texts(npc: NPC, stage: str, flag: str) -> tuple[str, str]:
    """Return what a rule does in words, and its value in words."""
    rule = npc.stage(stage).flags[flag]
    return rule.text, (rule.value or rule.text).replace("_", " ")


def _things(npc: NPC) -> Iterator[_Thing]:
    for stage in npc.quest_stages:
        for rule in npc.stage(stage).flags.values():
            when = rule.when
            yield from (_Thing("items", fold_id(name), True) for name in when.items)
            yield from (_Thing("actions", fold_id(name), True) for name in when.actions)
            for name, wanted in when.game_state.items():
                yield _Thing("game_state", fold_id(name), wanted)


def _stems(text: str) -> frozenset[str]:
    words = _WORD.findall(fold(text))
    return frozenset(_stem(word) for word in words if not _COMMON.fullmatch(word))


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word.removesuffix(ending)
    return word
