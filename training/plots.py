"""Pictures of an evaluation: reliability, precision–recall, learning curve, parts of the loss.

Arrays in, PNG files out. matplotlib is imported only when something is drawn. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from engine.schema import FLAGS
from training import metrics
from training.corpus import Corpus
from training.fit import FitArgs, frozen_method
from training.report import PARTS, Method, part_figures

SHARES = (0.1, 0.3, 1.0)
_INK = "#1f4e79"
_SECOND = "#c0562b"


class PlotError(RuntimeError):
    """Plots cannot be drawn; the message says what to install or where to look."""


def need_matplotlib() -> None:
    """Raise `PlotError` unless plots can be drawn, before an hour's work rather than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise PlotError(
            "plots need matplotlib: pip install -r training/requirements.txt, or leave --plots out"
        ) from exc


def draw_reliability(corpus: Corpus, heads: Method, folder: Path) -> Path:
    """Draw how often flags are true that were given a probability, among permitted flags."""
    figure, axes = _canvas(len(PARTS))
    for axis, part in zip(axes, PARTS, strict=True):
        index = list(getattr(corpus.split, part))
        open_BN = corpus.labels.permitted_BN[index]
        truth = corpus.labels.truth_BN[index][open_BN]
        probability = heads.scores.probability_BN[index][open_BN]
        said, came, count = metrics.reliability(truth, probability)
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.plot(said, came, marker="o", color=_INK)
        for x, y, n in zip(said, came, count, strict=True):
            axis.annotate(str(n), (x, y), xytext=(0, 6), textcoords="offset points", fontsize=7)
        axis.set(title=part, xlabel="probability", ylabel="share that is true", xlim=(0, 1))
        axis.set_ylim(0, 1.05)
    return _saved(figure, folder / "reliability.png")


def draw_precision_recall(corpus: Corpus, heads: Method, part: str, folder: Path) -> Path:
    """Draw a curve a flag after the gate; a dot marks where its threshold stands."""
    figure, axes = _canvas(len(FLAGS), columns=4)
    index = list(getattr(corpus.split, part))
    permitted_BN = corpus.labels.permitted_BN[index]
    truth_BN = corpus.labels.truth_BN[index]
    score_BN = heads.scores.probability_BN[index] * permitted_BN
    fired_BN = heads.proposed(index) & permitted_BN
    for n, (axis, flag) in enumerate(zip(axes, FLAGS, strict=True)):
        axis.set(title=flag, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
        truth, fired = truth_BN[:, n], fired_BN[:, n]
        if not truth.any():
            axis.text(0.5, 0.5, "no positives", ha="center")
            continue
        precision, recall, _ = precision_recall_curve(truth, score_BN[:, n])
        axis.step(recall, precision, where="post", color=_INK)
        right = float((truth & fired).sum())
        if fired.any():
            axis.plot([right / truth.sum()], [right / fired.sum()], "o", color=_SECOND)
    return _saved(figure, folder / f"precision_recall_{part}.png")


def learning_curve(corpus: Corpus, features: np.ndarray, args: FitArgs) -> dict[str, Any]:
    """Fit heads on the frozen base's features with 10, 30 and 100 % of the training rows.

    Returns:
        `rows` fitted on, and for each part its macro-F1 and delta Spearman at each of them.
    """
    train = np.random.default_rng(args.seed).permutation(corpus.split.train)
    counts = [max(1, round(share * len(train))) for share in SHARES]
    found: dict[str, Any] = {"rows": counts}
    measured = []
    for count in counts:
        part = tuple(sorted(int(row) for row in train[:count]))
        fewer = replace(corpus, split=replace(corpus.split, train=part))
        measured.append(frozen_method(fewer, features, args))
    for part_name in PARTS:
        figures = [part_figures(corpus, part_name, method) for method in measured]
        for key in ("flag_macro_f1", "delta_spearman"):
            found[f"{part_name} {key}"] = [one.get(key) for one in figures]
    return found


def draw_learning_curve(curve: Mapping[str, Any], folder: Path) -> Path:
    """Draw what `learning_curve` found."""
    figure, axes = _canvas(2)
    for axis, key in zip(axes, ("flag_macro_f1", "delta_spearman"), strict=True):
        for part, color in zip(PARTS, (_INK, _SECOND), strict=True):
            axis.plot(curve["rows"], curve[f"{part} {key}"], "o-", color=color, label=part)
        axis.set(xlabel="training rows (heads on the frozen base)", ylabel=key)
        axis.legend()
    return _saved(figure, folder / "learning_curve.png")


def read_losses(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read each part of the loss from the last checkpoint of a run: steps and values by name.

    Raises:
        PlotError: there is no log, or it holds no losses.
    """
    logs = [run / "trainer_state.json", *run.glob("checkpoint-*/trainer_state.json")]
    found: dict[int, Sequence[Mapping[str, Any]]] = {}
    for path in logs:
        if path.is_file():
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
                found[int(state["global_step"])] = state["log_history"]
            except (OSError, ValueError, KeyError, TypeError) as exc:
                raise PlotError(f"{path} is no trainer's log: {exc!r}") from exc
    if not found:
        raise PlotError(f"there is no trainer_state.json in {run} or its checkpoints")
    losses: dict[str, tuple[list[int], list[float]]] = {}
    for entry in found[max(found)]:
        for name, value in entry.items():
            if name.startswith("loss_") or name == "loss":
                steps, values = losses.setdefault(name, ([], []))
                steps.append(int(entry["step"]))
                values.append(float(value))
    if not losses:
        raise PlotError(f"the log of {run} holds no losses yet")
    return losses


def draw_losses(losses: Mapping[str, tuple[list[int], list[float]]], folder: Path) -> Path:
    """Draw each part of the loss over the steps of training."""
    figure, axes = _canvas(len(losses), columns=4)
    for axis, (name, (steps, values)) in zip(axes, sorted(losses.items()), strict=True):
        axis.plot(steps, values, color=_INK)
        axis.set(title=name.removeprefix("loss_"), xlabel="step")
    return _saved(figure, folder / "losses.png")


def _canvas(count: int, columns: int = 2) -> tuple[Any, list[Any]]:
    """Return a figure and `count` axes in rows of `columns`."""
    need_matplotlib()
    from matplotlib.figure import (
        Figure,
    )  # not pyplot: no window, no state that outlives the picture

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
