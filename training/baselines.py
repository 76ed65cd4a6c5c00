"""What the heads have to beat: a majority, and TF-IDF with logistic regression on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge


@dataclass(frozen=True)
class Scores:
    """A baseline's word on some rows: flag probabilities (B, N) and deltas (B, 2)."""

    probability_BN: np.ndarray
    delta_B2: np.ndarray


def majority(truth_BN: np.ndarray, delta_B2: np.ndarray, rows: int) -> Scores:
    """Give every row the training rows' frequency of each flag, and their mean delta."""
    return Scores(
        np.tile(truth_BN.mean(0), (rows, 1)),
        np.tile(delta_B2.mean(0), (rows, 1)),
    )


def tfidf(
    train_texts: Sequence[str],
    truth_BN: np.ndarray,
    delta_B2: np.ndarray,
    texts: Sequence[str],
) -> Scores:
    """Fit TF-IDF of words and of character n-grams (Korean needs them) with linear models."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    chars = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    from scipy.sparse import hstack

    train = hstack([words.fit_transform(train_texts), chars.fit_transform(train_texts)]).tocsr()
    other = hstack([words.transform(texts), chars.transform(texts)]).tocsr()
    columns = []
    for n in range(truth_BN.shape[1]):
        if len(set(truth_BN[:, n].tolist())) < 2:
            columns.append(np.zeros(len(texts)))
            continue
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
        columns.append(model.fit(train, truth_BN[:, n]).predict_proba(other)[:, 1])
    delta = Ridge(alpha=1.0).fit(train, delta_B2).predict(other)
    return Scores(np.stack(columns, axis=1), delta)
