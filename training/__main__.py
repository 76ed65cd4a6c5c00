"""`python -m training …`: the commands that make a bundle."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from engine.embed import SentenceEmbedder
from engine.errors import EngineError
from engine.model import choose_device, choose_precision, load_base
from engine.npc import load_folder
from engine.settings import load_settings
from engine.weights import resolve_base, resolve_embedder
from heads.bundle import BundleError, save_bundle
from training.features import make_reader
from training.fit import FitArgs, default_out, fit_bundle
from training.rows import RowError, read_rows

logger = logging.getLogger("training")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="fit heads on a frozen base and write a bundle")
    fit.add_argument("--base", default="", help="folder or hub id; default: the embedded base")
    fit.add_argument("--out", type=Path, default=default_out(), help="folder of the bundle")
    fit.add_argument("--data", type=Path, nargs="*", help="JSONL files; default: training/data/")
    fit.add_argument("--npcs", type=Path, help="folder of NPC files; default: NPC_DIR")
    fit.add_argument("--seed", type=int, default=7, help="of the split")
    fit.add_argument("--layer", type=int, default=0, help="0: validation chooses; -1: final norm")
    fit.add_argument("--name", default="frozen-heads", help="of the bundle")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _fit(options)
    except (EngineError, RowError, BundleError) as exc:
        logger.error("%s", exc)
        return 1


def _fit(options: argparse.Namespace) -> int:
    settings = load_settings()
    rows = read_rows(options.data)
    registry = load_folder(options.npcs or settings.npc_dir)
    base = resolve_base(options.base or settings.base_model or None, settings.model_cache)
    device = choose_device(settings.device)
    precision = choose_precision(device, settings.quantize, embedded=base.embedded)
    model, tokenizer = load_base(base.path, device, precision)
    bundle = fit_bundle(
        rows,
        registry,
        make_reader(model, tokenizer, max_tokens=settings.max_prompt_tokens),
        SentenceEmbedder(resolve_embedder(settings.embedder or None)),
        FitArgs(seed=options.seed, layer=options.layer, name=options.name),
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        languages=base.languages,
    )
    save_bundle(bundle, options.out)
    logger.info("%s", bundle.card)
    logger.info("written to %s", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
