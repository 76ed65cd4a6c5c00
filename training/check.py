"""`python -m training check`: are the rows sound, and are there enough of each kind?

    problems   wrong labels, forbidden utterances, replies that do not do what the flags say, twins
    table      rows, languages, pairs, and per flag: fired, held back by the gate, not asked for

`--label` writes the labels that the oracle computes into the files. Knows nothing of models but the
sentence embedder that the gate's meanings need.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.embed import Embedder
from engine.npc import NPCRegistry
from engine.schema import FLAGS
from engine.text import fold
from training.items import NPCWords, is_named, is_promised
from training.oracle import Judged, judge_rows
from training.rows import Row, RowError, parse_row

# Above this cosine two utterances are the same sentence with a word exchanged.
NEAR_TWIN = 0.95


@dataclass(frozen=True)
class Placed:
    """A row with where it stands ("file:line") and what the oracle says of it."""

    row: Row
    where: str
    judged: Judged


def read_placed(
    paths: Sequence[Path],
    registry: NPCRegistry,
    words: Mapping[str, NPCWords],
    encoder: Embedder,
) -> list[Placed]:
    """Read rows, labelled or not, and judge each.

    Raises:
        RowError: naming file, line and field.
    """
    parsed = []
    for path, number, data in _lines(paths):
        where = f"{path.name}:{number}"
        filled = {"delta": {}, "flag": [], **data}
        row = parse_row(json.dumps(filled), where=where)
        stages = registry.get(row.npc_id).quest_stages
        if row.tags.quest_stage not in stages:
            raise RowError(f"{where}: tags.quest_stage: must be one of {', '.join(stages)}")
        parsed.append((row, where))
    judged = judge_rows([row for row, _ in parsed], registry, encoder)
    return [Placed(row, where, one) for (row, where), one in zip(parsed, judged, strict=True)]


def _lines(paths: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                yield path, number, json.loads(line)
            except json.JSONDecodeError as exc:
                raise RowError(f"{path.name}:{number}: not valid JSON: {exc.msg}") from exc


def write_labels(paths: Sequence[Path], placed: Sequence[Placed]) -> None:
    """Write each row back with the oracle's flags and delta, fields in the schema's order."""
    judged = {one.where: one for one in placed}
    for path in paths:
        out = []
        for _, number, data in _lines([path]):
            one = judged[f"{path.name}:{number}"]
            data["flag"] = list(one.judged.flag)
            data["delta"] = one.judged.delta.model_dump()
            ordered = {key: data[key] for key in Row.model_fields if key in data}
            out.append(json.dumps(ordered, ensure_ascii=False, separators=(",", ":")))
        path.write_text("\n".join(out) + "\n", encoding="utf-8")


def problems(
    placed: Sequence[Placed],
    registry: NPCRegistry,
    words: Mapping[str, NPCWords],
    encoder: Embedder,
    *,
    labelled: bool,
) -> Iterator[str]:
    """Yield everything that is wrong, one line each, with the place.

    `labelled` also holds the rows' own labels against the oracle's.
    """
    for one in placed:
        for problem in _row_problems(one, registry, words, labelled=labelled):
            yield f"{one.where}: {problem}"
    yield from _twins(placed, encoder)


def _row_problems(
    one: Placed, registry: NPCRegistry, words: Mapping[str, NPCWords], *, labelled: bool
) -> Iterator[str]:
    row, judged = one.row, one.judged
    npc = registry.get(row.npc_id)
    rules = npc.stage(row.tags.quest_stage).flags
    if judged.forbidden:
        yield f"never reaches the model: {judged.forbidden}"
    for flag in row.asks:
        if flag not in rules:
            yield f"asks: {npc.id} has no {flag} at {row.tags.quest_stage}"
    if row.attack and (row.asks or judged.delta.trust > 0 or judged.delta.relationship > 0):
        yield "attack: must ask for nothing and gain nothing"
    if labelled and set(row.flag) != set(judged.flag):
        yield f"flag: is {list(row.flag)}, by rule {list(judged.flag)}"
    if labelled and row.delta != judged.delta:
        yield f"delta: is {row.delta}, by rule {judged.delta}"
    known = words.get(row.npc_id, NPCWords())
    if "give_item" in judged.flag:
        names = known.names(rules["give_item"].value or "", row.lang)
        if not is_named(row.response, names):
            yield f"response: hands over the item but names none of {', '.join(names)}"
    else:
        for item in known.items:
            if is_promised(row.response, known.names(item, row.lang), row.lang):
                yield f"response: promises the {item}, which is not granted"


def _twins(placed: Sequence[Placed], encoder: Embedder) -> Iterator[str]:
    """Yield utterances of an NPC that say the same, but for the pairs of one utterance."""
    by_npc: dict[str, list[Placed]] = defaultdict(list)
    for one in placed:
        by_npc[one.row.npc_id].append(one)
    said: dict[str, str] = {}
    for one in placed:
        folded = fold(one.row.response)
        if folded in said:
            yield f"{one.where}: response: the same as {said[folded]}"
        said[folded] = one.where
    for members in by_npc.values():
        vectors = encoder.encode([one.row.player_utterance for one in members])
        alike = np.triu(vectors @ vectors.T, k=1) > NEAR_TWIN
        for a, b in np.argwhere(alike):
            first, second = members[a].row, members[b].row
            if first.group is None or first.group != second.group:
                yield (
                    f"{members[b].where}: player_utterance: all but the same as {members[a].where}; "
                    "give both one group, or write another"
                )


def distinct_2(texts: Sequence[str]) -> float:
    """Return the share of different word pairs among all word pairs, 0 to 1.

    Source: Li et al., "A Diversity-Promoting Objective Function", 2016.
    """
    pairs: list[tuple[str, str]] = []
    for text in texts:
        tokens = fold(text).split()
        pairs.extend(itertools.pairwise(tokens))
    return len(set(pairs)) / max(len(pairs), 1)


def commonest_frame(texts: Sequence[str], length: int = 5) -> tuple[str, float]:
    """Return the commonest run of `length` words and the share of texts that hold it."""
    counts: Counter[str] = Counter()
    for text in texts:
        tokens = fold(text).split()
        counts.update(
            {" ".join(tokens[at : at + length]) for at in range(len(tokens) - length + 1)}
        )
    frame, count = counts.most_common(1)[0] if counts else ("", 0)
    return frame, count / max(len(texts), 1)


def table(placed: Sequence[Placed]) -> str:
    """Return the counts as text."""
    rows = [one.row for one in placed]
    groups = Counter((row.npc_id, row.group) for row in rows if row.group)
    paired = sum(count for count in groups.values() if count > 1)
    responses = [row.response for row in rows]
    frame, share = commonest_frame([row.player_utterance for row in rows])
    lines = [
        f"{len(rows)} rows, {len({row.npc_id for row in rows})} NPCs, "
        f"{sum(row.lang == 'ko' for row in rows)} Korean, {paired} in pairs, "
        f"{sum(row.attack for row in rows)} attacks, distinct-2 {distinct_2(responses):.2f}, "
        f"commonest frame {frame!r} in {share:.1%}",
        "acts: " + ", ".join(f"{act} {n}" for act, n in Counter(r.act for r in rows).most_common()),
        f"{'flag':24}{'fired':>7}{'gate off':>10}{'not asked':>11}",
    ]
    for flag in FLAGS:
        fired = sum(flag in one.judged.flag for one in placed)
        held = sum(flag in one.row.asks and flag not in one.judged.flag for one in placed)
        open_ = sum(flag in one.judged.permitted and flag not in one.row.asks for one in placed)
        lines.append(f"{flag:24}{fired:7}{held:10}{open_:11}")
    lines.append("(gate off: asked, a condition fails; not asked: conditions hold, nothing asked)")
    return "\n".join(lines)
