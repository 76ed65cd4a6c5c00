"""Authored lines: what an NPC says when the model does not, chosen by meaning and mood.

Two cases: the turn was decided but the model cannot write the language (an authored example turn with
the same decision is spoken), and the turn was not decided at all (a fallback line). Deterministic.
Knows nothing of models or storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.gate import TextEncoder
from engine.npc import NPC, ExampleTurn, FallbackLine
from engine.schema import SessionState
from engine.text import fold

# How much a fitting mood counts beside meaning (cosine), and how much having just said the line.
_MOOD_BONUS = 0.15
_REPEATED_PENALTY = 1.0


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
    turns = [turn for turn in turns if len(turn.flags) == best]
    if not turns:
        return fallback_line(npc, state, utterance, encoder)
    return _choose_turn(turns, state, utterance, encoder).npc


def _choose_turn(
    turns: Sequence[ExampleTurn], state: SessionState, utterance: str, encoder: TextEncoder
) -> ExampleTurn:
    recent = _recent_lines(state)
    vectors = encoder.encode([utterance, *(turn.player for turn in turns)])
    scores = vectors[1:] @ vectors[0]

    def rank(index: int) -> float:
        turn = turns[index]
        score = float(scores[index])
        if turn.emotion and fold(turn.emotion) == fold(state.npc_mood):
            score += _MOOD_BONUS
        return score - _REPEATED_PENALTY * (fold(turn.npc) in recent)

    return turns[max(range(len(turns)), key=rank)]


def fallback_line(npc: NPC, state: SessionState, utterance: str, encoder: TextEncoder) -> str:
    """Return the NPC's fallback line nearest to `utterance`, its own mood preferred."""
    lines = npc.stage(state.quest_stage).fallback or next(
        stage.fallback for stage in npc.stages.values() if stage.fallback
    )
    recent = _recent_lines(state)
    vectors = encoder.encode([utterance, *(line.about or line.text for line in lines)])
    scores = vectors[1:] @ vectors[0]

    def rank(index: int) -> float:
        line: FallbackLine = lines[index]
        score = float(scores[index])
        if line.mood and fold(line.mood) == fold(state.npc_mood):
            score += _MOOD_BONUS
        return score - _REPEATED_PENALTY * (fold(line.text) in recent)

    return lines[max(range(len(lines)), key=rank)].text


def _recent_lines(state: SessionState) -> frozenset[str]:
    return frozenset(fold(turn.npc) for turn in state.history)
