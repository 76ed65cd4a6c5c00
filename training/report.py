"""What a set of heads reaches on rows it never saw, beside what simple means reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.npc import NPCRegistry
from engine.schema import FLAGS
from training import metrics
from training.baselines import Scores, majority, tfidf
from training.features import row_parts
from training.labels import Labels
from training.rows import Row
from training.split import Split


def report(
    rows: Sequence[Row],
    registry: NPCRegistry,
    languages: tuple[str, ...],
    labels: Labels,
    split: Split,
    probability_BN: np.ndarray,
    thresholds: Sequence[float],
    delta_B2: np.ndarray,
) -> dict[str, Any]:
    """Measure the test part, beside the baselines; every figure with the gate and without.

    Args:
        rows: all rows; `labels`, `probability_BN` and `delta_B2` are aligned with them.
        registry: NPC files, for the baseline that reads the whole prompt.
        languages: those that the base can write, which pick the prompt's language.
        labels: truth and the gate's word.
        split: the baselines are fitted on its training part, all are measured on its test part.
        probability_BN: the heads' calibrated probabilities.
        thresholds: the heads' thresholds, one a flag; the baselines use 0.5.
        delta_B2: the heads' deltas.
    """
    train, test = list(split.train), list(split.test)
    prompts = [row_parts(row, registry, languages).marked() for row in rows]
    said = [row.player_utterance for row in rows]
    truth, delta = labels.truth_BN, labels.delta_B2
    candidates = {
        "heads": Scores(probability_BN[test], delta_B2[test]),
        "always_propose": Scores(np.ones_like(probability_BN[test]), np.zeros_like(delta[test])),
        "majority": majority(truth[train], delta[train], len(test)),
    }
    for name, texts in (("tfidf_utterance", said), ("tfidf_prompt", prompts)):
        chosen = [texts[index] for index in test]
        candidates[name] = tfidf(
            [texts[index] for index in train], truth[train], delta[train], chosen
        )
    bounds = {name: np.full(len(FLAGS), 0.5) for name in candidates}
    bounds["heads"] = np.array(thresholds)
    measured: dict[str, Any] = {
        name: _figures(labels, test, scores, bounds[name]) for name, scores in candidates.items()
    }
    fired_BN = (probability_BN[test] >= bounds["heads"]) & labels.permitted_BN[test]
    measured["heads"]["per_flag"] = metrics.per_flag_figures(
        FLAGS, truth[test], probability_BN[test] * labels.permitted_BN[test], fired_BN
    )
    measured["heads"]["by_language"] = {}
    for language in sorted({rows[index].lang for index in test}):
        part = [index for index in test if rows[index].lang == language]
        scores = Scores(probability_BN[part], delta_B2[part])
        measured["heads"]["by_language"][language] = _figures(labels, part, scores, bounds["heads"])
    return measured


def _figures(
    labels: Labels, part: list[int], scores: Scores, bound_N: np.ndarray
) -> dict[str, Any]:
    truth_BN, permitted_BN = labels.truth_BN[part], labels.permitted_BN[part]
    fired_BN = scores.probability_BN >= bound_N
    gated_BN = scores.probability_BN * permitted_BN
    return {
        "rows": len(part),
        "with_gate": {
            **metrics.f1_scores(truth_BN, fired_BN & permitted_BN),
            "flag_macro_auprc": metrics.macro_auprc(truth_BN, gated_BN),
            "ece": metrics.expected_calibration_error(
                truth_BN[permitted_BN], scores.probability_BN[permitted_BN]
            ),
        },
        "heads_alone": {
            **metrics.f1_scores(truth_BN, fired_BN),
            "flag_macro_auprc": metrics.macro_auprc(truth_BN, scores.probability_BN),
        },
        **metrics.delta_figures(labels.delta_B2[part], scores.delta_B2),
    }
