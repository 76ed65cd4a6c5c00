"""Rows as token ids, and packs of rows that share a prompt prefix.

All turns of an NPC at a stage begin with the same ids (persona, lore, scene). A pack holds that prefix
once and one branch a row behind it, so that a step reads far fewer tokens than its rows have:

    prefix  ─┬─ player state … <STATE> <ACT> … <NPC> reply
             ├─ player state … <STATE> <ACT> … <NPC> reply
             └─ …

Knows nothing of models; `training.collate` makes tensors of a pack.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.npc import NPCRegistry
from engine.prompt import PromptEncoder, act_text
from engine.schema import FLAGS
from heads.evidence import NOTHING, Evidence
from training.oracle import Judged
from training.prompts import row_parts
from training.rows import Row
from training.rubric import ACTS


@dataclass(frozen=True)
class Example:
    """One row as ids and labels.

    `ids` is the whole sequence, `prefix` how many of its ids the NPC's stage shares, `state` the index
    of <STATE>, `reply` the index of the reply's first id (len(ids) where no reply is learnt).
    `truth_N`, `permitted_N` and `asks_N` (what is asked for, whatever the state is) follow `FLAGS`;
    `act` is a place in the rubric, `attack` whether the row is an attempt to talk a flag out of the
    NPC; `meaning` is the utterance's sentence vector, for heads that read one, and `evidence` what
    the state says of what is said.
    """

    ids: tuple[int, ...]
    prefix: int
    state: int
    reply: int
    truth_N: tuple[float, ...]
    permitted_N: tuple[float, ...]
    delta_2: tuple[float, float]
    asks_N: tuple[float, ...]
    act: int
    attack: bool
    meaning: tuple[float, ...] = ()
    evidence: Evidence = NOTHING

    @property
    def reply_tokens(self) -> int:
        """How many ids of the reply are learnt."""
        return len(self.ids) - self.reply


@dataclass(frozen=True)
class Pack:
    """Examples with one prefix. `tokens` counts the ids that are read."""

    examples: tuple[Example, ...]

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids that all examples begin with."""
        first = self.examples[0]
        return first.ids[: first.prefix]

    @property
    def tokens(self) -> int:
        """How many ids a pass over the pack reads."""
        return len(self.prefix) + sum(len(one.ids) - one.prefix for one in self.examples)


def encode_example(
    row: Row,
    judged: Judged,
    encoder: PromptEncoder,
    registry: NPCRegistry,
    languages: Sequence[str],
    meaning: Sequence[float] = (),
) -> Example:
    """Encode one row as serving would: prompt, then the decision in <ACT>, then the reply.

    A reply in a language that the base cannot write is left out: only its state is learnt.
    """
    npc = registry.get(row.npc_id, row.lang if row.lang in languages else None)
    parts = row_parts(row, registry, languages, judged.permitted)
    prompt = encoder.encode(parts)
    ids = list(prompt.ids)
    reply = len(ids)
    if row.lang in languages:
        granted = npc.events(row.tags.quest_stage, judged.flag)
        told = act_text(npc.persona.name, list(granted.values()), judged.delta.trust)
        ids += encoder.encode_act(told)
        reply = len(ids)
        ids += [*encoder.text_ids(row.response), encoder.end_of_line]
    return Example(
        ids=tuple(ids),
        prefix=prompt.prefix_length,
        state=len(prompt.ids) - 1,
        reply=reply,
        truth_N=tuple(float(flag in judged.flag) for flag in FLAGS),
        permitted_N=tuple(float(flag in judged.permitted) for flag in FLAGS),
        delta_2=(judged.even.trust, judged.even.relationship),
        asks_N=tuple(float(flag in row.asks) for flag in FLAGS),
        act=list(ACTS).index(row.act),
        attack=row.attack,
        meaning=tuple(meaning),
        evidence=judged.evidence,
    )


def make_packs(
    examples: Sequence[Example], *, max_tokens: int, max_examples: int, seed: int
) -> list[Pack]:
    """Deal examples into packs by prefix, in an order that `seed` fixes.

    Args:
        examples: in any order.
        max_tokens: ids a pack may read; one example that is longer has a pack to itself.
        max_examples: rows a pack may hold.
        seed: of the dealing.
    """
    by_prefix: Mapping[tuple[int, ...], list[Example]] = defaultdict(list)
    for one in examples:
        by_prefix[one.ids[: one.prefix]].append(one)
    dealer = random.Random(seed)
    packs: list[Pack] = []
    for prefix in sorted(by_prefix):
        members = by_prefix[prefix]
        dealer.shuffle(members)
        packs.extend(_fill(members, max_tokens, max_examples))
    dealer.shuffle(packs)
    return packs


def _fill(members: Sequence[Example], max_tokens: int, max_examples: int) -> Iterable[Pack]:
    held: list[Example] = []
    for one in members:
        grown = Pack((*held, one))
        if held and (grown.tokens > max_tokens or len(held) >= max_examples):
            yield Pack(tuple(held))
            held = []
        held.append(one)
    if held:
        yield Pack(tuple(held))
