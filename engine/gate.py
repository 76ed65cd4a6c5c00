"""What a turn permits before any model is asked: forbidden utterances, and each flag's conditions.

Every refusal has a reason in plain words. Knows nothing of models, prompts or storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from engine.decision import Verdict
from engine.npc import NPC, Conditions, Forbidden, Said
from engine.schema import SessionState
from engine.text import contains_keyword, fold, fold_id

# Two utterances count as the same thing said again from here on: a paraphrase, not a follow-up.
SAME_SAID = 0.9


class TextEncoder(Protocol):
    """Anything that turns texts into unit vectors, shape (n, dim)."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return one unit row per text."""


def find_forbidden(npc: NPC, utterance: str, encoder: TextEncoder) -> tuple[Forbidden, str] | None:
    """Return the first forbidden trigger that `utterance` meets, and why; None if there is none."""
    for trigger in npc.forbidden:
        keyword = contains_keyword(utterance, trigger.keywords)
        if keyword is not None:
            return trigger, f"{trigger.name}: the word {keyword!r}"
    for trigger in npc.forbidden:
        score = _nearest(utterance, trigger.sentences, encoder)
        if trigger.sentences and score >= trigger.similarity:
            return trigger, f"{trigger.name}: close in meaning ({score:.2f})"
    return None


def check_flags(
    npc: NPC, stage: str, state: SessionState, utterance: str, encoder: TextEncoder
) -> dict[str, Verdict]:
    """Judge every flag that the NPC has at `stage`."""
    verdicts: dict[str, Verdict] = {}
    for flag, rule in npc.stage(stage).flags.items():
        absent = unmet_facts(rule.when, state)
        missing = [*absent, *unmet_standing(rule.when, state)]
        if rule.once and npc.rule_key(stage, flag) in state.fired:
            missing.insert(0, "has happened already")
        # Meaning costs an embedding, so it is asked only where the rest holds.
        if not missing and rule.when.said:
            missing = _unmet_said(rule.when.said, utterance, encoder)
        facts = not absent if _names_facts(rule.when) else None
        verdicts[flag] = Verdict(not missing, "; ".join(missing) or None, facts=facts)
    return verdicts


def _names_facts(when: Conditions) -> bool:
    return bool(when.items or when.actions or when.game_state)


def unmet_facts(when: Conditions, state: SessionState) -> list[str]:
    """Return the items, actions and game state that are missing of `when`, each in plain words."""
    missing = [f"needs the item {item}" for item in _absent(when.items, state.items)]
    missing += [f"needs the action {action}" for action in _absent(when.actions, state.actions)]
    world = {fold_id(key): value for key, value in state.game_state.items()}
    for key, wanted in when.game_state.items():
        found = world.get(fold_id(key))
        if not same_value(wanted, found):
            missing.append(f"needs {key} = {_shown(wanted)} (is {_shown(found)})")
    return missing


def unmet_standing(when: Conditions, state: SessionState) -> list[str]:
    """Return what trust and relationship lack of `when`, each in plain words."""
    missing = []
    for name in ("trust", "relationship"):
        bound, standing = getattr(when, f"min_{name}"), getattr(state.standing, name)
        if bound is not None and standing < bound:
            missing.append(f"needs {name} ≥ {bound:g} (is {standing:g})")
    return missing


def count_repeats(utterance: str, said: Sequence[str], encoder: TextEncoder) -> int:
    """Count how many of the earlier utterances `said` (folded) say the same as `utterance`."""
    if not said:
        return 0
    vectors = encoder.encode([fold(utterance), *said])
    return int((vectors[1:] @ vectors[0] >= SAME_SAID).sum())


def _absent(wanted: Sequence[str], present: Sequence[str]) -> list[str]:
    held = {fold_id(name) for name in present}
    return [name for name in wanted if fold_id(name) not in held]


def same_value(wanted: object, found: object) -> bool:
    """Tell whether a game-state value is the one that a condition wants."""
    if isinstance(wanted, str) and isinstance(found, str):
        return fold_id(wanted) == fold_id(found)
    # True == 1 in Python; in a game's state a flag and a count are different things.
    return isinstance(wanted, bool) == isinstance(found, bool) and wanted == found


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unmet_said(said: Said, utterance: str, encoder: TextEncoder) -> list[str]:
    if contains_keyword(utterance, said.keywords) is not None:
        return []
    score = _nearest(utterance, said.meanings, encoder)
    if said.meanings and score >= said.similarity:
        return []
    topic = (said.keywords or said.meanings)[0]
    detail = f"; nearest meaning {score:g} of {said.similarity:g}" if said.meanings else ""
    return [f"the talk has not come to it ({topic!r}{detail})"]


def _nearest(utterance: str, sentences: Sequence[str], encoder: TextEncoder) -> float:
    if not sentences:
        return 0.0
    vectors = encoder.encode([utterance, *sentences])
    # Rounded, so that the very sentence reaches a similarity of 1 whatever float32 makes of it.
    return round(float((vectors[1:] @ vectors[0]).max()), 3)


def open_in_bad_faith(npc: NPC, stage: str) -> frozenset[str]:
    """Return the flags of `stage` that fire even for a player who seems to deceive."""
    rules = npc.stage(stage).flags.items()
    return frozenset(flag for flag, rule in rules if rule.even_in_bad_faith)


def overrides(npc: NPC, stage: str) -> Mapping[str, float]:
    """Return the thresholds that the NPC file sets at `stage`, by flag."""
    rules = npc.stage(stage).flags.items()
    return {flag: rule.threshold for flag, rule in rules if rule.threshold is not None}
