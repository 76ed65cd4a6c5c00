"""The command around `training.evaluate`: its options, what it prints, draws and writes.

Figures go to stdout, as a table or as JSON and nothing else; everything said on the way to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from engine.embed import Embedder
from heads.bundle import Bundle, save_bundle
from training.corpus import Corpus
from training.evaluate import Evaluation, bundle_seed, evaluate
from training.features import FeatureStore
from training.fit import FitArgs, data_digest
from training.plots import (
    PlotError,
    draw_learning_curve,
    draw_losses,
    draw_precision_recall,
    draw_reliability,
    learning_curve,
    read_losses,
)
from training.record import with_figures
from training.report import PARTS
from training.sides import Source
from training.tables import evaluation_table

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--base", default="", help="folder or hub id; default: the embedded base")
    parser.add_argument("--data", type=Path, nargs="*", help="JSONL files; default: training/data/")
    parser.add_argument("--npcs", type=Path, help="folder of NPC files; default: NPC_DIR")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this folder")
    parser.add_argument("--run", type=Path, help="folder of the training run, for the loss plot")
    parser.add_argument(
        "--limit",
        type=_count,
        default=60,
        help="lines to write, and answers to ask for in JSON, a part at most",
    )
    parser.add_argument(
        "--features", type=Path, help=".npz file that keeps what the frozen base read, for reruns"
    )
    parser.add_argument(
        "--heads-only",
        action="store_true",
        help="heads and probes alone: what is known of the base and of the words stays",
    )
    parser.add_argument(
        "--no-base",
        action="store_true",
        help="leave out the base alone: what is known of it stays",
    )
    parser.add_argument(
        "--write", action="store_true", help="store the figures in the bundle and its card"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def run_evaluation(
    options: argparse.Namespace, bundle: Bundle, corpus: Corpus, source: Source, encoder: Embedder
) -> None:
    """Evaluate, print, and draw and write what was asked for.

    Args:
        options: as `add_arguments` defines them.
        bundle: what is measured.
        corpus: divided with the bundle's seed.
        source: of its base.
        encoder: sentence embedder, for the gate.

    Raises:
        EvaluationError: the bundle cannot be evaluated.
        PlotError: plots are asked for and matplotlib is not there (see `need_matplotlib`).
    """
    if bundle.info.training.get("data_sha256") != data_digest(corpus.rows):
        logger.warning(
            "these are not the rows that the bundle was made from: some that it was fitted on may "
            "stand in its test part"
        )
    store = FeatureStore(options.features, source.fingerprint)
    found = evaluate(
        corpus,
        bundle,
        source,
        encoder,
        limit=options.limit,
        store=store,
        heads_only=options.heads_only,
        with_base=not options.no_base,
    )
    sys.stdout.write(_printed(found.figures, as_json=options.json) + "\n")
    sys.stdout.flush()
    if options.write:
        save_bundle(with_figures(bundle, found.figures), options.bundle)
        logger.info("figures and card written to %s", options.bundle)
    if options.plots:
        _draw(options, bundle, corpus, found)


def _printed(figures: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    return evaluation_table(figures, PARTS)


def _draw(options: argparse.Namespace, bundle: Bundle, corpus: Corpus, found: Evaluation) -> None:
    """Draw all plots; the parts of the loss only where there is a run to read them from."""
    folder = options.plots
    drawn = [draw_reliability(corpus, found.heads, folder)]
    drawn += [
        draw_precision_recall(corpus, found.heads, part, folder)
        for part in PARTS
        if getattr(corpus.split, part)
    ]
    if found.features is not None:
        args = FitArgs(seed=bundle_seed(bundle), layer=bundle.info.spec.layer)
        drawn.append(draw_learning_curve(learning_curve(corpus, found.features, args), folder))
    run = options.run or bundle.info.training.get("run")
    if run:
        try:
            drawn.append(draw_losses(read_losses(Path(run)), folder))
        except PlotError as exc:
            logger.warning("the loss is not drawn: %s", exc)
    else:
        logger.info("the loss is not drawn: the bundle names no training run; name one with --run")
    for path in drawn:
        logger.info("drawn: %s", path)
