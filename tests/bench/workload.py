"""The prompts that all contestants get: token ids of fixed lengths, made once and handed around.

A prompt is the NPC's constant part, then a part of its own for every player and turn, up to <STATE>;
the text is made up, the template and the markers are the engine's. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.decode import Sampling
from engine.prompt import PromptEncoder, PromptParts, act_text

_NPC = "Mira"
_TEXT = """
the old mill by the river stood empty since autumn when smith and miller went away they left a locked
chest in the cellar and nobody knows who holds its key some say a child found it near the well others
heard steps at night and saw a lantern between trees every winter people bring bread wood and candles
to my door I keep them warm until snow melts then we mend roofs count sheep and wait for travellers
with news from the harbour where ships come late and captains pay too little
"""


@dataclass(frozen=True)
class Lengths:
    """Tokens: of a prompt, of its constant part, of a reply."""

    prompt: int = 400
    prefix: int = 280
    reply: int = 40


@dataclass(frozen=True)
class Workload:
    """What is asked of every contestant; all plain values, so that it travels as JSON.

    Args:
        prefix: ids of the NPC's constant part.
        own: for each player and turn the ids behind it; the last one is <STATE>.
        act: ids between <STATE> and the line, for those who write it to the decision.
        reply_tokens: of every line, no more and no fewer.
        temperature, top_p, repetition_penalty: how tokens are drawn.
    """

    prefix: tuple[int, ...]
    own: tuple[tuple[tuple[int, ...], ...], ...]
    act: tuple[int, ...]
    reply_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1

    @property
    def players(self) -> int:
        """How many players there are prompts for."""
        return len(self.own)

    def ids(self, player: int, turn: int) -> tuple[int, ...]:
        """Return a prompt; turns beyond those made begin again."""
        turns = self.own[player]
        return self.prefix + turns[turn % len(turns)]

    def sampling(self, seed: int) -> Sampling:
        """Return the engine's sampling for a line."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.reply_tokens,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Workload:
        """Return the workload of `to_json`."""
        own = tuple(tuple(tuple(turn) for turn in turns) for turns in held["own"])
        ids = {name: tuple(held[name]) for name in ("prefix", "act")}
        return cls(**{**held, **ids, "own": own})


def make_workload(
    encoder: PromptEncoder,
    players: int,
    turns: int,
    lengths: Lengths | None = None,
    *,
    seed: int = 7,
) -> Workload:
    """Make prompts of exact lengths for `players` with `turns` each.

    Args:
        encoder: of the model's tokenizer; its longest prompt must have room for these.
        players, turns: how many; no two prompts are alike behind the constant part.
        lengths: in tokens.
        seed: of the made-up talk.
    """
    lengths = lengths or Lengths()
    draw = random.Random(seed)
    sys, scene = _talk(draw, lengths.prefix), _talk(draw, lengths.prefix)
    prefix: tuple[int, ...] = ()
    own: list[list[tuple[int, ...]]] = [[] for _ in range(players)]
    behind = lengths.prompt - lengths.prefix
    for row in own:
        for _ in range(turns):
            said = [_talk(draw, behind // 3) for _ in range(5)]
            parts = PromptParts(
                sys=f"You are {_NPC}. {sys}",
                lore=(),
                scene=scene,
                player_state=said[0],
                tags=said[1],
                history=((said[2], said[3]),),
                utterance=said[4],
                events="none",
            )
            encoded = encoder.encode(parts)
            prefix = encoded.ids[: lengths.prefix]
            # Cut in the middle: the beginning and the end are as the engine makes them.
            row.append(encoded.ids[encoded.prefix_length :][-behind:])
    act = encoder.encode_act(act_text(_NPC, [], 0.0))
    return Workload(prefix, tuple(map(tuple, own)), act, lengths.reply)


def _talk(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(_TEXT.split(), k=max(1, words)))


def check_lengths(workload: Workload, lengths: Lengths, state_id: int) -> None:
    """Raise `ValueError` unless every prompt is as long as promised and ends with its one <STATE>."""
    prompts = [
        workload.ids(player, turn)
        for player, turns in enumerate(workload.own)
        for turn in range(len(turns))
    ]
    if not _are(prompts, lengths.prompt) or len(workload.prefix) != lengths.prefix:
        raise ValueError(f"the prompts are not {lengths.prompt} tokens long as they should be")
    if any(ids.count(state_id) != 1 or ids[-1] != state_id for ids in prompts):
        raise ValueError("a prompt does not end with its one <STATE>")


def _are(prompts: Sequence[Sequence[int]], length: int) -> bool:
    return all(len(ids) == length for ids in prompts)
