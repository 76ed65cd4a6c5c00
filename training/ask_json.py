"""The simplest rival: the base as it is, asked in a chat prompt for flags and delta as JSON.

What it writes is read as kindly as possible; what cannot be read counts as nothing. Knows nothing of
heads, gates or labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.prompt import PromptParts
from engine.schema import FLAGS
from training.baselines import Scores
from training.feeding import Feeder

_MOST_TOKENS = 72
_TASK = (
    "You are the rules of a dialogue game. Read the scene and what the player says to the NPC, and "
    "judge the turn. Answer with one JSON object and nothing else, in this form: "
    '{"flags": ["give_item"], "delta": {"trust": 0.05, "relationship": 0.0}}. '
    '"flags" lists those of the possible events that the player\'s words bring about now; most often '
    'there are none: []. "delta" says how the words change trust and relationship, each from -0.3 to '
    "0.3; rude words lower them and kind words raise them."
)
_KNOWN_FLAG = re.compile("|".join(map(re.escape, sorted(FLAGS, key=len, reverse=True))))
_NUMBER = r"[\"']?\s*:\s*[\"']?([-+]?\d*\.?\d+)"


@dataclass(frozen=True)
class Answer:
    """What an answer says; nothing where it cannot be read."""

    flags: tuple[str, ...] = ()
    trust: float = 0.0
    relationship: float = 0.0


def ask_ids(tokenizer: Any, parts: PromptParts) -> list[int]:
    """Encode the question about one turn, with the base's own chat template where it has one."""
    talk = "".join(f"\nPlayer: {player}\nNPC: {npc}" for player, npc in parts.history)
    told = (
        f"The NPC: {parts.sys}\nScene: {parts.scene}\n{parts.player_state}\n{parts.tags}{talk}\n"
        f'The player says: "{parts.utterance}"\nPossible events: {parts.events}\nJSON:'
    )
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": told}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text = f"{_TASK}\n\n{told} "
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def ask_base(feeder: Feeder, prompts: Sequence[PromptParts]) -> tuple[Scores, np.ndarray]:
    """Ask the base about each turn; return its word as scores, and which answers could be read.

    Args:
        feeder: of the plain base.
        prompts: the turns' parts, as they are rendered for the heads.
    """
    asked = [ask_ids(feeder.model.tokenizer, parts) for parts in prompts]
    probability_BN, delta_B2 = np.zeros((len(asked), len(FLAGS))), np.zeros((len(asked), 2))
    understood_B = np.zeros(len(asked), dtype=bool)
    order = sorted(range(len(asked)), key=lambda at: asked[at])
    for at in tqdm(order, desc="asking the base for JSON", unit="row"):
        said = feeder.text(asked[at], most=_MOST_TOKENS, enough=_closed)
        answer = parse_answer(said)
        understood_B[at] = answer is not None
        answer = answer or Answer()
        probability_BN[at] = [float(flag in answer.flags) for flag in FLAGS]
        delta_B2[at] = [answer.trust, answer.relationship]
    return Scores(probability_BN, delta_B2), understood_B


def _closed(said: str) -> bool:
    return "{" in said and said.count("}") >= said.count("{")


def parse_answer(said: str) -> Answer | None:
    """Read an answer: a JSON object if there is one in it, else its flags' names and numbers.

    Returns:
        None where neither flags nor a delta can be made out. Unknown flags are left out, numbers are
        kept within -1..1.
    """
    found = _object(said)
    if found is not None:
        delta = found.get("delta")
        if isinstance(delta, list) and len(delta) == 2:
            delta = {"trust": delta[0], "relationship": delta[1]}
        inner = delta if isinstance(delta, dict) else found
        trust, relationship = (_number(inner.get(name)) for name in ("trust", "relationship"))
        if "flags" in found or trust is not None or relationship is not None:
            return Answer(_flags(found.get("flags")), trust or 0.0, relationship or 0.0)
    if "{" not in said:
        return None
    # Cut off or malformed: names of flags in a list that was opened, and numbers behind their names.
    listed = re.search(r"flags[\"']?\s*:\s*\[([^\]]*)", said)
    numbers = [re.search(name + _NUMBER, said) for name in ("trust", "relationship")]
    if listed is None and not any(numbers):
        return None
    trust, relationship = (_number(one.group(1)) if one else None for one in numbers)
    named = _KNOWN_FLAG.findall(listed.group(1)) if listed else []
    return Answer(_flags(named), trust or 0.0, relationship or 0.0)


def _object(said: str) -> dict[str, Any] | None:
    start = said.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(said[start:])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _flags(value: Any) -> tuple[str, ...]:
    """Return the known flags in a list, a mapping to true, or one name."""
    if isinstance(value, str):
        value = _KNOWN_FLAG.findall(value)
    if isinstance(value, dict):
        value = [name for name, on in value.items() if on is True]
    named = value if isinstance(value, list) else []
    return tuple(flag for flag in FLAGS if flag in [one for one in named if isinstance(one, str)])


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return max(-1.0, min(1.0, number)) if math.isfinite(number) else None
