"""`python -m training …`: the commands that look over data, make a bundle and measure it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from engine.embed import Embedder, SentenceEmbedder
from engine.errors import EngineError
from engine.model import choose_device, choose_precision, load_base
from engine.settings import load_settings
from engine.weights import resolve_base, resolve_embedder
from heads.bundle import Bundle, BundleError, load_bundle, save_bundle
from training.args import Base, TrainArgs
from training.check import problems, read_placed, table, write_labels
from training.corpus import Corpus, load_corpus
from training.evaluate import EvaluationError, bundle_seed
from training.evaluate_command import add_arguments as add_evaluate
from training.evaluate_command import run_evaluation
from training.features import FeatureStore, make_reader
from training.fit import FitArgs, corpus_prompts, default_out, fit_bundle, layer_features
from training.fit_heads import Scaling
from training.items import read_words
from training.oracle import training_registry
from training.plots import PlotError, need_matplotlib
from training.processes import is_first, take_gpu
from training.publish import METRIC, PublishError, make_plan, publish
from training.report import PARTS
from training.rows import DATA_DIR, ROWS_REMEMBERED, RowError, read_rows
from training.sides import Source
from training.spread import spread, spread_table
from training.train import refit_bundle, train_bundle
from training.vectors import KeptVectors

logger = logging.getLogger("training")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit", help="fit heads on a frozen base and write a bundle")
    _add_fit(fitting)
    longer = commands.add_parser("train", help="train adapter and heads and write a bundle")
    _add_train(longer)
    checking = commands.add_parser("check", help="look the rows over: labels, quality, counts")
    _add_check(checking)
    measuring = commands.add_parser("evaluate", help="measure a bundle beside simpler means")
    add_evaluate(measuring)
    measuring.set_defaults(run_command=_evaluate)
    for one in (fitting, longer, checking, measuring):
        _add_vectors(one)
    _add_publish(commands.add_parser("publish", help="upload a bundle and move 'latest' to it"))
    options = parser.parse_args(arguments)
    level = logging.INFO if is_first() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    if options.command != "train" and not is_first():
        return 0  # one process does it
    take_gpu()
    run: Callable[[argparse.Namespace], int] = options.run_command
    try:
        return run(options)
    except (EngineError, RowError, BundleError, EvaluationError, PlotError, PublishError) as exc:
        logger.error("%s", exc)
        return 1


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default="", help="folder or hub id; default: the embedded base")
    parser.add_argument("--data", type=Path, nargs="*", help="JSONL files; default: training/data/")
    parser.add_argument("--npcs", type=Path, help="folder of NPC files; default: NPC_DIR")
    parser.add_argument("--out", type=Path, default=default_out(), help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=7, help="of the division and every draw")
    parser.add_argument(
        "--features", type=Path, help=".npz file that keeps what the frozen base read, for reruns"
    )


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vectors",
        type=Path,
        default=Path("runs/vectors.npz"),
        help=".npz file that keeps the sentences' vectors: only new ones are read",
    )


def _add_fit(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--layer", type=int, default=0, help="0: validation chooses; -1: final norm"
    )
    parser.add_argument("--name", default="frozen-heads", help="of the bundle")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="fit under so many seeds and tell the spread; no bundle",
    )
    parser.set_defaults(run_command=_fit)


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    usual = TrainArgs()
    parser.add_argument("--run", type=Path, default=Path("runs/train"), help="checkpoints and log")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run's last checkpoint"
    )
    parser.add_argument(
        "--start", type=Path, help="bundle whose adapter the run goes on from; default: none"
    )
    parser.add_argument(
        "--finish", action="store_true", help="train no further: a bundle from the run's best epoch"
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="train nothing: heads, calibration and thresholds anew on the adapter of --start",
    )
    parser.add_argument("--epochs", type=float, default=usual.epochs)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="of training at most; 0: no limit"
    )
    parser.add_argument("--lr", type=float, default=usual.lr, help="of adapter and marker rows")
    parser.add_argument("--head-lr", type=float, default=usual.head_lr)
    parser.add_argument(
        "--layer", type=int, default=usual.layer, help="that the heads read; -1: final norm"
    )
    parser.add_argument("--accumulate", type=int, default=usual.accumulate, help="packs a step")
    parser.add_argument("--pack-tokens", type=int, default=usual.pack_tokens)
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument(
        "--log", default="none", choices=("none", "tensorboard", "trackio"), help="metrics"
    )
    parser.add_argument("--name", default=usual.name, help="of the bundle")
    parser.add_argument(
        "--draws",
        type=int,
        default=usual.draws,
        help="fit the heads on so many draws of the training rows besides, and tell the spread",
    )
    parser.set_defaults(run_command=_train)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, nargs="*", help="JSONL files; default: training/data/")
    parser.add_argument("--label", action="store_true", help="write the labels into the files")
    parser.set_defaults(run_command=_check)


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--repo", required=True, help="model repository of the hub: ORG/NAME")
    parser.add_argument("--metric", default=METRIC, help="figure of the test part, for the branch")
    parser.add_argument("--space", default="", help="URL of a Space that is to reload")
    parser.add_argument("--dry-run", action="store_true", help="tell the steps and do none")
    parser.set_defaults(run_command=_publish)


def _embedder(options: argparse.Namespace) -> Embedder:
    path = resolve_embedder(load_settings().embedder or None)
    return KeptVectors(SentenceEmbedder(path, cache_size=ROWS_REMEMBERED), options.vectors)


def _corpus(options: argparse.Namespace, embedder: Embedder | None = None) -> Corpus:
    read_rows(options.data)  # a bad row is told before anything is loaded
    npcs = options.npcs or load_settings().npc_dir
    return load_corpus(options.data, npcs, embedder or _embedder(options), seed=options.seed)


def _base(options: argparse.Namespace) -> Base:
    settings = load_settings()
    base = resolve_base(options.base or settings.base_model or None, settings.model_cache)
    device = choose_device(settings.device)
    precision = choose_precision(device, settings.quantize, embedded=base.embedded)
    model, tokenizer = load_base(base.path, device, precision)
    return Base(
        model, tokenizer, base.id, base.fingerprint, base.languages, settings.max_prompt_tokens
    )


def _source(options: argparse.Namespace) -> Source:
    settings = load_settings()
    base = resolve_base(options.base or settings.base_model or None, settings.model_cache)
    device = choose_device(settings.device)
    precision = choose_precision(device, settings.quantize, embedded=base.embedded)
    return Source(
        lambda: load_base(base.path, device, precision),
        base.id,
        base.fingerprint,
        precision,
        settings.max_prompt_tokens,
    )


def _fit(options: argparse.Namespace) -> int:
    corpus, base = _corpus(options), _base(options)
    reader = make_reader(base.model, base.tokenizer, max_tokens=base.max_tokens)
    store = FeatureStore(options.features, base.fingerprint)
    features = store.read(reader, corpus_prompts(corpus, reader, base.languages))

    def fitted(one: Corpus, seed: int) -> Bundle:
        return fit_bundle(
            one,
            reader,
            FitArgs(seed=seed, layer=options.layer, name=options.name),
            base_id=base.id,
            base_fingerprint=base.fingerprint,
            languages=base.languages,
            features=features,
        )

    if options.seeds > 1:
        figures = []
        for seed in range(options.seed, options.seed + options.seeds):
            options.seed = seed
            figures.append(fitted(_corpus(options), seed).info.metrics)
            logger.info("seed %d: %.3f", seed, figures[-1]["test"]["flag_macro_f1"])
        found = {part: spread(figures, part) for part in PARTS}
        logger.info("%s", spread_table(f"{options.seeds} seeds", found))
        return 0
    bundle = fitted(corpus, options.seed)
    save_bundle(bundle, options.out)
    logger.info("%s", bundle.card)
    logger.info("written to %s", options.out)
    return 0


def _train(options: argparse.Namespace) -> int:
    start = load_bundle(options.start) if options.start else None
    if options.refit and start is None:
        raise BundleError("--refit needs --start BUNDLE, whose adapter the heads are fitted on")
    if options.refit and not is_first():
        return 0
    corpus, base = _corpus(options), _base(options)
    args = TrainArgs(
        seed=options.seed,
        epochs=options.epochs,
        minutes=options.minutes,
        lr=options.lr,
        head_lr=options.head_lr,
        layer=options.layer,
        accumulate=options.accumulate,
        pack_tokens=options.pack_tokens,
        checkpointing=options.checkpointing,
        start=start.info.name if start else "",
        name=options.name,
        draws=options.draws,
    )
    bundle: Bundle | None
    if start and options.refit:
        bundle = refit_bundle(corpus, base, args, options.run, start)
    else:
        # A run that goes on from a bundle fits its first heads on what that bundle's adapter reads.
        frozen, scaling = (None, None) if start else _frozen(options, corpus, base)
        bundle = train_bundle(
            corpus,
            base,
            args,
            options.run,
            heads=frozen.heads if frozen else None,
            scaling=scaling,
            frozen=frozen.info.metrics if frozen else None,
            start=start,
            resume=options.resume,
            finish=options.finish,
            report_to=options.log,
        )
    if bundle is not None:
        save_bundle(bundle, options.out)
        logger.info("%s", bundle.card)
        logger.info("written to %s", options.out)
    return 0


def _frozen(options: argparse.Namespace, corpus: Corpus, base: Base) -> tuple[Bundle, Scaling]:
    """Fit heads on the frozen base: what a run starts from, and what it is measured against."""
    reader = make_reader(base.model, base.tokenizer, max_tokens=base.max_tokens)
    store = FeatureStore(options.features, base.fingerprint)
    features = store.read(reader, corpus_prompts(corpus, reader, base.languages))
    frozen = fit_bundle(
        corpus,
        reader,
        FitArgs(seed=options.seed, layer=options.layer, meaning=False, name="frozen"),
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        languages=base.languages,
        features=features,
    )
    learnt = layer_features(features, options.layer)[list(corpus.split.train)]
    return frozen, Scaling.of(learnt)


def _check(options: argparse.Namespace) -> int:
    paths = sorted(options.data or DATA_DIR.glob("*.jsonl"))
    registry, words = training_registry(load_settings().npc_dir), read_words()
    embedder = _embedder(options)
    placed = read_placed(paths, registry, words, embedder)
    if options.label:
        write_labels(paths, placed)
    found = list(problems(placed, registry, words, embedder, labelled=False))
    for problem in found:
        logger.info("%s", problem)
    logger.info("%s", table(placed))
    return 1 if found else 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.plots:
        need_matplotlib()
    bundle = load_bundle(options.bundle)
    options.seed = bundle_seed(bundle)
    embedder = _embedder(options)
    corpus = _corpus(options, embedder)
    run_evaluation(options, bundle, corpus, _source(options), embedder)
    return 0


def _publish(options: argparse.Namespace) -> int:
    plan = make_plan(options.bundle, options.repo, metric=options.metric, space=options.space)
    publish(plan, dry_run=options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
