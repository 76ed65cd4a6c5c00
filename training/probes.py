"""Probes for shortcuts: what do the heads still say when part of the prompt is taken away or bent?

    state_shuffled    the tags and player state of another row of the same NPC and stage
    utterance_only    no talk before, and the state of somebody nobody knows
    trust_sweep       trust from -1 to 1, all else as it was
    keyword_stuffing  the words that the gate waits for, piled up without meaning anything

Each makes rows, has them read, and holds what was read against the true labels. Knows nothing of
models: how rows are read and judged is handed in.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.schema import FLAGS
from training import metrics
from training.corpus import Corpus
from training.feeding import Readings
from training.items import NPCWords
from training.oracle import Judged
from training.report import Method
from training.rows import PlayerState, Row, Tags

TRUSTS = tuple(round(-1.0 + 0.25 * step, 2) for step in range(9))

# More rows would take longer and move a figure by a hundredth.
_MOST_ROWS = 240
_SWEPT_ROWS = 20
_STUFFED_ROWS = 60
_STUFFED_CHARACTERS = 200


@dataclass(frozen=True)
class Bench:
    """What probes work with.

    Args:
        corpus: labelled rows.
        part: indices of the rows to bend.
        heads: what was read of the rows as they are, aligned with the corpus.
        read: reads rows, each with the gate's word on it; says on a progress bar what for.
        judge: labels a row by rule, the gate's word included.
        seed: of every draw.
    """

    corpus: Corpus
    part: Sequence[int]
    heads: Method
    read: Callable[[Sequence[Row], Sequence[Judged], str], Readings]
    judge: Callable[[Row], Judged]
    seed: int


def run_probes(bench: Bench) -> dict[str, Any]:
    """Return the figures of all probes by name; {"rows": 0} for one that finds no rows."""
    probes = (state_shuffled, utterance_only, trust_sweep, keyword_stuffing)
    return {probe.__name__: probe(bench) for probe in probes}


def state_shuffled(bench: Bench) -> dict[str, Any]:
    """Give rows another row's state. The drop is what the heads owe to the state."""
    rows = bench.corpus.rows
    pairs = _donors(bench)
    bent = [
        rows[at].model_copy(
            update={"tags": rows[donor].tags, "player_state": rows[donor].player_state}
        )
        for at, donor in pairs
    ]
    return _held_against_truth(bench, [at for at, _ in pairs], bent, "state shuffled")


def utterance_only(bench: Bench) -> dict[str, Any]:
    """Leave nothing but the utterance. What is kept of the figures is read from words alone.

    The evidence is of the empty state too, so a claim counts as false for the delta.
    """
    rows = bench.corpus.rows
    index = _drawn(bench, bench.part, _MOST_ROWS)
    bent = [
        rows[at].model_copy(
            update={
                "context": (),
                "player_state": PlayerState(),
                "tags": Tags(quest_stage=rows[at].tags.quest_stage, trust=0.0, relationship=0.0),
            }
        )
        for at in index
    ]
    return _held_against_truth(bench, index, bent, "utterance only")


def trust_sweep(bench: Bench) -> dict[str, Any]:
    """Move trust alone, the permitted events as they were: does probability merely follow it?

    Returns:
        `trust`, and at each of its steps `mean_probability` of the permitted flags; over the rows the
        mean `spearman` of the two, the mean `range`, and the share that rises at every step.
    """
    corpus = bench.corpus
    permitted = corpus.labels.permitted_BN
    index = _drawn(bench, [at for at in bench.part if permitted[at].any()], _SWEPT_ROWS)
    if not index:
        return {"rows": 0}
    bent, judged = [], []
    for at in index:
        row = corpus.rows[at]
        for trust in TRUSTS:
            tags = row.tags.model_copy(update={"trust": trust})
            bent.append(row.model_copy(update={"tags": tags}))
            judged.append(corpus.judged[at])
    read_BN = bench.read(bent, judged, "trust swept").scores.probability_BN
    read_RSN = read_BN.reshape(len(index), len(TRUSTS), len(FLAGS))
    mean_RS = np.stack(
        [one_SN[:, permitted[at]].mean(axis=1) for at, one_SN in zip(index, read_RSN, strict=True)]
    )
    steps = np.array(TRUSTS)
    return {
        "rows": len(index),
        "trust": list(TRUSTS),
        "mean_probability": [_round(value) for value in mean_RS.mean(axis=0)],
        "spearman": _round(np.mean([metrics.spearman(steps, one_S) for one_S in mean_RS])),
        "range": _round(np.ptp(mean_RS, axis=1).mean()),
        "rising": _round((np.diff(mean_RS, axis=1) > 0).all(axis=1).mean()),
    }


def keyword_stuffing(bench: Bench) -> dict[str, Any]:
    """Say every keyword of the stage, its items and its events, and mean nothing by it.

    Returns:
        The share of rows where any flag is proposed (`fire_rate`), for comparison with the rows' own
        utterances (`fire_rate_as_said`); where any fires after the gate (`fires_after_gate`), which the
        keywords themselves open; and the share of the open flags that fire (`of_permitted`).
    """
    corpus = bench.corpus
    index = _each_stage(bench)
    if not index:
        return {"rows": 0}
    bent = [_stuffed(corpus, corpus.rows[at]) for at in index]
    judged = [bench.judge(row) for row in bent]
    read = bench.read(bent, judged, "keywords stuffed")
    proposed_BN = read.scores.probability_BN >= read.threshold_BN
    open_BN = np.array(
        [[flag in one.permitted and not one.forbidden for flag in FLAGS] for one in judged]
    )
    fired_BN = proposed_BN & open_BN
    return {
        "rows": len(index),
        "fire_rate": _round(proposed_BN.any(axis=1).mean()),
        "fire_rate_as_said": _round(bench.heads.proposed(index).any(axis=1).mean()),
        "fires_after_gate": _round(fired_BN.any(axis=1).mean()),
        "of_permitted": _round(fired_BN.sum() / max(open_BN.sum(), 1)),
        "forbidden": sum(one.forbidden is not None for one in judged),
    }


def _held_against_truth(
    bench: Bench, index: Sequence[int], bent: Sequence[Row], what: str
) -> dict[str, Any]:
    """Return the heads' figures without the gate on rows as they are and as they are bent."""
    if not index:
        return {"rows": 0}
    read = bench.read(bent, [bench.judge(row) for row in bent], what)
    at = list(index)
    scores = bench.heads.scores
    as_is = _ungated(
        bench, at, scores.probability_BN[at], bench.heads.proposed(at), scores.delta_B2[at]
    )
    probability_BN = read.scores.probability_BN
    proposed_BN = probability_BN >= read.threshold_BN
    changed = _ungated(bench, at, probability_BN, proposed_BN, read.scores.delta_B2)
    drop = {name: _round(as_is[name] - changed[name]) for name in as_is}
    return {"rows": len(at), "as_is": as_is, "changed": changed, "drop": drop}


def _ungated(
    bench: Bench,
    index: list[int],
    probability_BN: np.ndarray,
    proposed_BN: np.ndarray,
    delta_B2: np.ndarray,
) -> dict[str, float]:
    labels = bench.corpus.labels
    truth_BN = labels.truth_BN[index]
    return {
        **metrics.f1_scores(truth_BN, proposed_BN),
        "flag_macro_auprc": metrics.macro_auprc(truth_BN, probability_BN),
        "delta_spearman": metrics.delta_figures(
            labels.bent(labels.delta_B2[index], index), labels.bent(delta_B2, index)
        )["delta_spearman"],
    }


def _drawn(bench: Bench, index: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the indices, in their order."""
    return sorted(random.Random(bench.seed).sample(list(index), min(most, len(index))))


def _donors(bench: Bench) -> list[tuple[int, int]]:
    """Pair rows with another row of their NPC and stage whose state differs; rows without: none."""
    rows = bench.corpus.rows
    stages: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at in bench.part:
        stages[rows[at].npc_id, rows[at].tags.quest_stage].append(at)
    dealer = random.Random(bench.seed)
    pairs = []
    for _, members in sorted(stages.items()):
        dealer.shuffle(members)
        for place, at in enumerate(members):
            around = [*members[place + 1 :], *members[:place]]
            donor = next((one for one in around if _state(rows[one]) != _state(rows[at])), None)
            if donor is not None:
                pairs.append((at, donor))
    kept = set(_drawn(bench, [at for at, _ in pairs], _MOST_ROWS))
    return [pair for pair in pairs if pair[0] in kept]


def _state(row: Row) -> tuple[Tags, PlayerState]:
    return row.tags, row.player_state


def _each_stage(bench: Bench) -> list[int]:
    """Return a row of each NPC, stage and language of the part."""
    rows = bench.corpus.rows
    found: dict[tuple[str, str, str], int] = {}
    for at in _drawn(bench, bench.part, len(bench.part)):
        found.setdefault((rows[at].npc_id, rows[at].tags.quest_stage, rows[at].lang), at)
    return _drawn(bench, list(found.values()), _STUFFED_ROWS)


def _stuffed(corpus: Corpus, row: Row) -> Row:
    """Return a row whose utterance is a heap of keywords: one of each flag, then the next of each."""
    rules = corpus.registry.get(row.npc_id, row.lang).stage(row.tags.quest_stage).flags
    known = corpus.words.get(row.npc_id, NPCWords())
    heaps = [known.names(item, row.lang) for item in known.items]
    for flag, rule in rules.items():
        keywords = rule.when.said.keywords if rule.when.said else ()
        spoken = [word for word in keywords if word.isascii() == (row.lang == "en")]
        heaps.append((*spoken, flag.replace("_", " ")))
    longest = max(map(len, heaps), default=0)
    words = [heap[place] for place in range(longest) for heap in heaps if place < len(heap)]
    text = ""
    for word in dict.fromkeys(words):
        if len(text) + len(word) < _STUFFED_CHARACTERS:
            text = f"{text} {word}".strip()
    return row.model_copy(update={"player_utterance": text or "give item"})


def _round(value: Any) -> float:
    return round(float(value), 4)
