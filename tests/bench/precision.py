"""`python -m tests.bench.precision`: what a precision costs the decision, against fp32.

The same turns (rows that no bundle was trained on) are read by the shipped bundle in full precision,
with int16 products, in bf16 by the library and by the lean forward that serves, and in 4-bit NF4. Told
are the differences in calibrated probability and delta, and how many flags flip among those that the
gate permits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.decision import Reading
from engine.decode import Sampling
from engine.embed import SentenceEmbedder
from engine.host import Job, StateKnown
from engine.loader import find_bundle
from engine.model import LanguageModel, Precision, load_base
from engine.prompt import EncodedPrompt
from engine.serving.batch import BatchHost
from engine.serving.start import make_decoder
from engine.settings import load_settings
from engine.weights import resolve_base, resolve_embedder
from heads.evidence import Evidence
from training.corpus import Corpus, load_corpus
from training.prompts import row_parts
from training.sides import Source

_SILENT = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=1, seed=0)


@dataclass(frozen=True)
class Turns:
    """Prompts, and of each the flags that the gate permits, what is heard, and the evidence."""

    prompts: Sequence[EncodedPrompt]
    permitted: Sequence[frozenset[str]]
    meanings: Sequence[tuple[float, ...]]
    evidence: Sequence[Evidence]


def differences(
    reference: Sequence[Reading], found: Sequence[Reading], permitted: Sequence[frozenset[str]]
) -> dict[str, float]:
    """Return how readings differ: of probabilities and deltas, and flips among permitted flags."""
    gaps, moves, flips, open_flags = [], [], 0, 0
    for one, other, allowed in zip(reference, found, permitted, strict=True):
        for flag, probability in one.probabilities.items():
            gaps.append(abs(other.probabilities[flag] - probability))
            if flag in allowed:
                open_flags += 1
                flips += (probability >= one.thresholds[flag]) != (
                    other.probabilities[flag] >= other.thresholds[flag]
                )
        moves += [abs(other.trust - one.trust), abs(other.relationship - one.relationship)]
    return {
        "probability_mean": round(float(np.mean(gaps)), 5),
        "probability_max": round(float(np.max(gaps)), 5),
        "delta_max": round(float(np.max(moves)), 5),
        "flips": flips,
        "permitted_flags": open_flags,
    }


def read_by_library(model: LanguageModel, turns: Turns) -> list[Reading]:
    """Read each prompt in one pass of the library's model."""
    return [
        model.prefill(prompt.ids, meaning, evidence).reading
        for prompt, meaning, evidence in zip(
            turns.prompts, turns.meanings, turns.evidence, strict=True
        )
    ]


def read_as_served(model: LanguageModel, turns: Turns, products: str = "auto") -> list[Reading]:
    """Read each prompt as serving does: the lean forward, in slices, the prefix once."""
    host = BatchHost(model, make_decoder(model, products, room=256))
    try:
        readings = []
        given = zip(turns.prompts, turns.meanings, turns.evidence, strict=True)
        for prompt, meaning, evidence in given:
            job = Job(
                prompt.ids,
                _SILENT,
                prefix=prompt.prefix_length,
                write=False,
                meaning=meaning,
                evidence=evidence,
            )
            event = next(iter(host.run(job)))
            if isinstance(event, StateKnown):
                readings.append(event.reading)
        return readings
    finally:
        host.close()


def _turns(corpus: Corpus, model: LanguageModel, count: int) -> Turns:
    index = [*corpus.split.test, *corpus.split.unseen]
    chosen = index[:: max(1, len(index) // count)][:count]
    permitted = [corpus.judged[at].permitted for at in chosen]
    prompts = [
        model.encoder.encode(row_parts(corpus.rows[at], corpus.registry, model.languages, flags))
        for at, flags in zip(chosen, permitted, strict=True)
    ]
    meanings = [tuple(one) for one in corpus.heard_by(model.bundle.info.spec, chosen)]
    return Turns(prompts, permitted, meanings, [corpus.judged[at].evidence for at in chosen])


def measure(count: int, only: str = "") -> Mapping[str, Mapping[str, float]]:
    """Return, for each precision whose name holds `only`, how readings differ from fp32."""
    settings = load_settings()
    bundle, base = find_bundle(settings.bundle), resolve_base(None, settings.model_cache)
    embedder = SentenceEmbedder(resolve_embedder(settings.embedder or None))
    corpus = load_corpus(
        None, settings.npc_dir, embedder, seed=int(bundle.info.training.get("seed", 7))
    )

    def loaded(precision: Precision) -> LanguageModel:
        source = Source(
            lambda: load_base(base.path, torch.device("cpu"), precision),
            base.id,
            base.fingerprint,
            precision,
        )
        return source.served(bundle)

    exact = loaded("fp32")
    turns = _turns(corpus, exact, count)
    reference = read_by_library(exact, turns)
    ways: dict[str, Callable[[], list[Reading]]] = {
        "fp32, lean": lambda: read_as_served(exact, turns, "float"),
        "int16 products": lambda: read_as_served(exact, turns, "int16"),
        "bf16, library": lambda: read_by_library(loaded("bf16"), turns),
        "bf16, lean (as served)": lambda: read_as_served(loaded("bf16"), turns),
        "4-bit NF4, library": lambda: read_by_library(loaded("4bit"), turns),
    }
    found = {}
    for name, read in ways.items():
        if only not in name:
            continue
        sys.stderr.write(f"reading {len(turns.prompts)} turns: {name}\n")
        found[name] = differences(reference, read(), turns.permitted)
    return found


def main() -> None:
    """Print the table, or JSON alone with --json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.precision", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turns", type=int, default=64, help="how many turns are read")
    parser.add_argument("--only", default="", help="a part of a precision's name, such as int16")
    options = parser.parse_args()
    found = measure(options.turns, options.only)
    text = json.dumps(found, indent=1) if options.json else _table(found)
    sys.stdout.write(f"{text}\n")


def _table(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| against fp32 | mean Δp | max Δp | max Δ delta | flips |", "|---" * 5 + "|"]
    lines += [
        f"| {name} | {one['probability_mean']:.4f} | {one['probability_max']:.3f} | "
        f"{one['delta_max']:.4f} | {one['flips']:.0f} of {one['permitted_flags']:.0f} |"
        for name, one in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
