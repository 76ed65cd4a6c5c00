"""Measures which sentence vectors tell Korean and English game dialogue apart by meaning.

    python -m training.embedder_study [--base FOLDER]

`embedder_study.json` holds 60 Korean utterances, each with a paraphrase that shares few words with
it and two traps that share many but mean something else; 30 of them stand in English too; and 40
Korean pairs of the same or (again with shared words) another meaning. The n-gram variants are
compared on the same sentences that chose among them, so their figures lean to the good side.
Knows nothing of NPCs, bundles or training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.embed import JamoNgrams, SentenceEmbedder, UniversalSentences, Vectors, unit_rows
from engine.weights import resolve_embedder

DATA = Path(__file__).with_suffix(".json")

Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Item:
    """A query, its paraphrase, and two sentences that only look like it."""

    query: str
    target: str
    traps: tuple[str, ...]
    english: tuple[str, str] | None


@dataclass(frozen=True)
class Pair:
    """Two Korean sentences, and whether they mean the same."""

    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1, the higher the better; chance is 1/60, 1/3, 0.5, 0.5, 1/30 and 1/30."""

    korean_top1: float
    trapped_top1: float
    auc_other: float
    auc_trap: float
    cross_top1: float
    english_top1: float


def read_study(path: Path = DATA) -> tuple[list[Item], list[Pair]]:
    """Read the study's sentences."""
    data = json.loads(path.read_text(encoding="utf-8"))
    items = [
        Item(
            query=row["query"],
            target=row["target"],
            traps=tuple(row["distractors"]),
            english=(row["english"]["query"], row["english"]["target"])
            if "english" in row
            else None,
        )
        for row in data["retrieval"]
    ]
    return items, [Pair(**row) for row in data["pairs"]]


def score(encode: Encode, items: Sequence[Item], pairs: Sequence[Pair]) -> Scores:
    """Measure one way of making vectors.

    `korean_top1` looks for each paraphrase among all of them, `trapped_top1` between its own two
    traps, `cross_top1` for the English one by the Korean query. `auc_other` sets the pairs of one
    meaning against sentences of different pairs, `auc_trap` against the pairs that share words.
    """
    queries = encode([item.query for item in items])
    targets = encode([item.target for item in items])
    traps = encode([trap for item in items for trap in item.traps])
    traps_NTD = traps.reshape(len(items), -1, queries.shape[1])
    own = np.sum(queries * targets, axis=1)
    trap_best = np.einsum("nd,ntd->nt", queries, traps_NTD).max(axis=1)

    same = [pair for pair in pairs if pair.same]
    firsts, seconds = encode([pair.a for pair in same]), encode([pair.b for pair in same])
    grid = firsts @ seconds.T
    trapped = [pair for pair in pairs if not pair.same]
    false = np.sum(encode([pair.a for pair in trapped]) * encode([p.b for p in trapped]), axis=1)

    english = [(item.query, *item.english) for item in items if item.english]
    korean, asked, meant = (encode([row[at] for row in english]) for at in range(3))
    return Scores(
        korean_top1=_top1(queries @ targets.T),
        trapped_top1=float((own > trap_best).mean()),
        auc_other=_auc(np.diag(grid), grid[~np.eye(len(same), dtype=bool)]),
        auc_trap=_auc(np.diag(grid), false),
        cross_top1=_top1(korean @ meant.T),
        english_top1=_top1(asked @ meant.T),
    )


def thresholds(encode: Encode, items: Sequence[Item]) -> Iterator[tuple[str, float, float, float]]:
    """Yield (case, threshold, share of paraphrases at or above it, share of other sentences)."""
    english = [item for item in items if item.english]
    cases = {
        "Korean": ([item.query for item in items], [item.target for item in items]),
        "English": (
            [item.english[0] for item in english if item.english],
            [item.english[1] for item in english if item.english],
        ),
        "Korean by English": (
            [item.query for item in english],
            [item.english[1] for item in english if item.english],
        ),
    }
    for case, (queries, targets) in cases.items():
        grid = encode(queries) @ encode(targets).T
        other = grid[~np.eye(len(queries), dtype=bool)]
        for bound in (0.25, 0.35, 0.45, 0.55):
            yield (
                case,
                bound,
                float((np.diag(grid) >= bound).mean()),
                float((other >= bound).mean()),
            )


def _top1(grid: Vectors) -> float:
    """Return how often the diagonal is the largest of its row."""
    return float((grid.argmax(axis=1) == np.arange(len(grid))).mean())


def _auc(positive: Vectors, negative: Vectors) -> float:
    """Return how often a positive lies above a negative, ties counting half."""
    over = positive[:, None] > negative[None, :]
    tied = positive[:, None] == negative[None, :]
    return float((over + 0.5 * tied).mean())


def methods(base: Path | None) -> Iterator[tuple[str, Encode]]:
    """Yield every way of making vectors that can be measured here, by name."""
    for sizes, jamo in (((1, 2), False), ((1, 2, 3), False), ((2, 3, 4), True), ((3, 4, 5), True)):
        part = JamoNgrams(sizes, jamo=jamo)
        yield part.id, part.encode
    if base:
        yield from _hidden_states(base)
    embedder = SentenceEmbedder(resolve_embedder(None))
    yield "sentence model alone", embedder.model_vectors
    yield (
        "join with jamo n-grams",
        SentenceEmbedder(resolve_embedder(None), second=JamoNgrams()).encode,
    )
    if UniversalSentences.installed():
        yield UniversalSentences.id, UniversalSentences().encode
        yield "join as in engine/embed.py", embedder.encode


def _hidden_states(folder: Path) -> Iterator[tuple[str, Encode]]:
    """Yield the base model's hidden states, averaged over the tokens, at several depths."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    depth: int = model.config.num_hidden_layers
    cache: dict[str, Any] = {}

    def layers(text: str) -> Any:
        """Return the mean hidden state of every layer, shape (depth + 1, hidden size)."""
        if text not in cache:
            ids = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                states = model(**ids, output_hidden_states=True).hidden_states
            cache[text] = torch.stack([state[0].mean(dim=0) for state in states]).numpy()
        return cache[text]

    for layer in sorted({0, depth // 3, 2 * depth // 3, depth}):

        def encode(texts: Sequence[str], at: int = layer) -> Vectors:
            return unit_rows(np.stack([layers(text)[at] for text in texts]))

        yield f"hidden states, layer {layer}", encode


def report(base: Path | None) -> str:
    """Measure every method and return the tables, ready to show."""
    items, pairs = read_study()
    head = ("ko top-1", "of 3", "AUC", "AUC trap", "ko→en", "en top-1")
    lines = [f"{'method':30}" + "".join(f"{name:>10}" for name in head)]
    last: Encode | None = None
    for name, encode in methods(base):
        result = score(encode, items, pairs)
        lines.append(f"{name:30}" + "".join(f"{value:10.2f}" for value in vars(result).values()))
        last = encode
    if last:
        lines += ["", f"last method: {'cosine at least':30}{'paraphrase':>12}{'other':>8}"]
        for case, bound, hit, miss in thresholds(last, items):
            lines.append(f"{case:30}{bound:13.2f}{hit:12.2f}{miss:8.3f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables to standard output."""
    parser = argparse.ArgumentParser(description="Compare sentence vectors for Korean and English.")
    parser.add_argument("--base", type=Path, help="folder of a base model to measure as well")
    sys.stdout.write(report(parser.parse_args().base))


if __name__ == "__main__":
    main()
