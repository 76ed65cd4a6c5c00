"""Do words and deeds agree? The line is written to a known decision, and read for what it hands over.

    named        the item that was granted is named in the line, as a player reads it: a sentence that
                 the engine adds counts (`engine.naming`); `unaided` is the share without
    overpromise  an item that was asked for (or talked for, in an attack) and not granted is promised
                 all the same

The decision is the true one, by the rows' labels: what is measured is whether the line follows it.
Knows nothing of how a decision is made.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from engine.decode import Sampling
from engine.naming import missing_sentence
from engine.schema import GenParams
from training.corpus import Corpus
from training.dataset import Example
from training.feeding import Feeder
from training.items import NPCWords, is_named, is_promised

GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    repetition_penalty=GenParams().repetition_penalty,
    max_new_tokens=48,
    seed=0,
)
_ITEM = "give_item"


@dataclass(frozen=True)
class Case:
    """A row whose line is written: its index, whether the item is granted, and names to look for.

    `names` holds the names of each item that the line may speak of.
    """

    row: int
    granted: bool
    names: tuple[tuple[str, ...], ...]
    language: str

    def agrees(self, line: str) -> bool:
        """Return whether `line` names what is granted, or promises nothing that is not."""
        if self.granted:
            return any(is_named(line, names) for names in self.names)
        return not any(is_promised(line, names, self.language) for names in self.names)


def find_cases(
    corpus: Corpus, part: Sequence[int], languages: Sequence[str], *, limit: int, seed: int
) -> list[Case]:
    """Choose rows of a part that grant an item, and rows that want one in vain, half and half.

    Args:
        corpus: rows with their labels.
        part: indices of rows to choose among.
        languages: those that the model writes; other rows have no line of the model's.
        limit: rows at most; where one kind has too few, the other may fill up.
        seed: of the choice.
    """
    cases = [one for row in part if (one := _case(corpus, row, languages))]
    dealer = random.Random(seed)
    kinds = [[one for one in cases if one.granted is granted] for granted in (True, False)]
    for kind in kinds:
        dealer.shuffle(kind)
    granted, refused = kinds
    half = (limit + 1) // 2
    room = max(half, limit - len(refused))
    chosen = granted[:room]
    return [*chosen, *refused[: max(limit - len(chosen), 0)]]


def _case(corpus: Corpus, row: int, languages: Sequence[str]) -> Case | None:
    one, granted = corpus.rows[row], _ITEM in corpus.judged[row].flag
    if one.lang not in languages or not (granted or one.attack or _ITEM in one.asks):
        return None
    npc = corpus.registry.get(one.npc_id, one.lang)
    rule = npc.stage(one.tags.quest_stage).flags.get(_ITEM)
    handed = {rule.value} if rule and rule.value else set()
    known = corpus.words.get(one.npc_id, NPCWords())
    # A refused player may be promised another item instead, which is no better.
    items = handed if granted else {*handed, *known.items}
    if not items:
        return None
    names = tuple(known.names(item, one.lang) for item in sorted(items))
    return Case(row, granted, names, one.lang)


def write_lines(
    feeder: Feeder, corpus: Corpus, examples: Mapping[int, Example], cases: Sequence[Case]
) -> dict[int, str]:
    """Write each case's line, by index of the row; `examples` holds at least their rows."""
    lines = {}
    order = sorted(cases, key=lambda case: examples[case.row].ids)
    for case in tqdm(order, desc="writing lines", unit="line"):
        one, row = examples[case.row], corpus.rows[case.row]
        speaker = corpus.registry.get(row.npc_id, row.lang).persona.name
        lines[case.row] = feeder.line(one.ids[: one.reply], one.state, speaker, GREEDY)
    return lines


def as_read(corpus: Corpus, case: Case, line: str) -> str:
    """Return a line with what the engine adds to it before a player reads it."""
    row = corpus.rows[case.row]
    npc = corpus.registry.get(row.npc_id, row.lang)
    fired = corpus.judged[case.row].flag
    missing = missing_sentence(npc, row.tags.quest_stage, fired, line)
    return f"{line} {missing}".strip()


def agreement(
    cases: Sequence[Case], lines: Mapping[int, str], read: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return the share of granted items that are named, and of refused ones that are promised.

    None where there was no row to tell by; `agreement_rows` counts the lines.

    Args:
        cases: what to look for.
        lines: the model's own, by row.
        read: what a player reads of them (`as_read`); None: the lines as they are.
    """
    agrees = {case: case.agrees((read or lines)[case.row]) for case in cases}
    named = [right for case, right in agrees.items() if case.granted]
    unaided = [case.agrees(lines[case.row]) for case in cases if case.granted]
    promised = [not right for case, right in agrees.items() if not case.granted]
    return {
        "agreement_named": _share(named),
        "agreement_named_unaided": _share(unaided),
        "agreement_overpromise": _share(promised),
        "agreement_rows": len(cases),
        "agreement_named_rows": len(named),
        "agreement_overpromise_rows": len(promised),
    }


def _share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
