"""Authored lines: what an NPC says when the model does not, chosen by meaning and mood.

Two cases: the turn was decided but the model cannot write the language (an authored example turn with
the same decision is spoken), and the turn was not decided at all (a fallback line). Deterministic.
Knows nothing of models or storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.gate import TextEncoder
from engine.npc import NPC
from engine.schema import SessionState
from engine.text import fold

# How much a fitting mood counts beside meaning (cosine), and how much having just said the line.
_MOOD_BONUS = 0.15
_REPEATED_PENALTY = 1.0


@dataclass(frozen=True)
class _Choice:
    """A line that may be spoken, what it suits in words, and its mood."""

    line: str
    suits: str
    mood: str | None


def authored_line(
    npc: NPC, state: SessionState, utterance: str, fired: Iterable[str], encoder: TextEncoder
) -> str:
    """Return the line of the authored turn that was decided alike and is nearest in meaning.

    A turn that carries a flag which did not fire is never spoken: its line would promise what the
    game does not do. Without any turn that fits, a fallback line is returned.
    """
    wanted = frozenset(fired)
    turns = [turn for turn in npc.stage(state.quest_stage).turns if frozenset(turn.flags) <= wanted]
    best = max((len(turn.flags) for turn in turns), default=0)
    choices = [
        _Choice(turn.npc, turn.player, turn.emotion) for turn in turns if len(turn.flags) == best
    ]
    if not choices:
        return fallback_line(npc, state, utterance, encoder)
    return _nearest(choices, state, utterance, encoder)


def fallback_line(npc: NPC, state: SessionState, utterance: str, encoder: TextEncoder) -> str:
    """Return the NPC's fallback line nearest to `utterance`, its own mood preferred."""
    lines = npc.stage(state.quest_stage).fallback or next(
        stage.fallback for stage in npc.stages.values() if stage.fallback
    )
    choices = [_Choice(line.text, line.about or line.text, line.mood) for line in lines]
    return _nearest(choices, state, utterance, encoder)


def _nearest(
    choices: Sequence[_Choice], state: SessionState, utterance: str, encoder: TextEncoder
) -> str:
    """Return the line of the best choice; the first of equals, so the outcome is always the same."""
    vectors = encoder.encode([utterance, *(choice.suits for choice in choices)])
    similarities = vectors[1:] @ vectors[0]
    recent = {fold(turn.npc) for turn in state.history}

    def rank(index: int) -> float:
        choice, score = choices[index], float(similarities[index])
        if choice.mood and fold(choice.mood) == fold(state.npc_mood):
            score += _MOOD_BONUS
        return score - _REPEATED_PENALTY * (fold(choice.line) in recent)

    return choices[max(range(len(choices)), key=rank)].line
