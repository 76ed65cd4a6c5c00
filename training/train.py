"""`python -m training train`: heads first on frozen features, then adapter and heads together.

    corpus → examples → packs → MultiHeadTrainer → read all rows → calibrate, cut → bundle

A run lives in a folder: checkpoints, log, and the choices it started from, so that it can be killed at
any moment and resumed to the same result. On a GPU the base is loaded in 4-bit (QLoRA), on a CPU in
bf16 where the processor has it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from engine.prompt import PromptEncoder, choose_marker_ids
from engine.schema import FLAGS
from heads.bundle import Bundle, BundleError
from heads.modules import StateHeads
from heads.spec import HeadSpec
from training.args import Base, TrainArgs
from training.collate import collate
from training.corpus import Corpus
from training.dataset import Example, encode_example, make_packs
from training.finish import make_bundle
from training.fit import heads_worth
from training.fit_heads import Linear, Scaling, build_heads, fit_delta, fit_flags
from training.metrics import delta_figures, macro_auprc
from training.model import MultiHeadModel, positive_weights
from training.processes import is_first
from training.reading import read_examples
from training.record import of_base, without_heads
from training.report import PARTS
from training.rubric import ACTS
from training.scaled import ScaledHeads
from training.trainer import MultiHeadTrainer, TimeBudget
from training.watch import ValidWatch

logger = logging.getLogger(__name__)

# Strength of the heads that a run starts with when it goes on from a bundle.
_START_STRENGTH = 0.001
# Rows that they are fitted on: enough to start with; reading all takes as long as a third of an epoch.
_START_ROWS = 1500
# Seconds that a process waits for another.
_PATIENCE = 3 * 3600


def train_bundle(
    corpus: Corpus,
    base: Base,
    args: TrainArgs,
    run: Path,
    *,
    heads: StateHeads | None = None,
    scaling: Scaling | None = None,
    frozen: Mapping[str, Any] | None = None,
    start: Bundle | None = None,
    resume: bool = False,
    finish: bool = False,
    report_to: str = "none",
) -> Bundle | None:
    """Train adapter and heads on a corpus and return the bundle; its adapter lies in `run`.

    Where `accelerate launch` started several processes, the first makes the bundle, and the others
    return None when training ends.

    Args:
        corpus: labelled turns, divided.
        base: what is trained; its marker rows are not yet installed.
        args: how.
        run: folder for checkpoints, log and adapter.
        heads: to start from, fitted on frozen features at the same layer; None: small random ones.
        scaling: of those features; None: as they are.
        frozen: figures of those heads, which go into the report as a baseline; None: what `start`
            tells of the base alone goes there.
        start: bundle whose adapter and marker rows the run goes on from; the heads are then fitted anew
            on what that adapter reads.
        resume: go on from the last checkpoint in `run`, if there is one.
        finish: train no further; make the bundle from the best epoch that `run` holds.
        report_to: "tensorboard", "trackio" or "none".

    Raises:
        ValueError: `heads` reads another layer than `args.layer`.
        BundleError: there is no epoch to finish with.
    """
    if finish and not is_first():
        return None
    examples = _encoded(corpus, base)
    spec = HeadSpec(FLAGS, int(base.model.config.hidden_size), args.layer)
    set_seed(args.seed)
    if heads is None:
        heads = _small_heads(spec)
    elif heads.spec != spec:
        raise ValueError(f"the heads read layer {heads.spec.layer}, the run layer {args.layer}")
    learnt = [examples[index] for index in corpus.split.train]
    model = _model(base, args, _scaled(heads, scaling), learnt, start)
    if start and not finish:
        model.heads = _fitted_heads(model, learnt, spec, args)
    watch = ValidWatch(run, model, lambda: _valid_figures(model, examples, corpus, args))
    done = 0
    if not finish:
        trainer = _trainer(model, learnt, args, run, report_to, watch)
        last = get_last_checkpoint(str(run)) if resume and run.is_dir() else None
        if last is None and is_first():
            watch.clear()
        trainer.train(resume_from_checkpoint=last)
        done = trainer.state.global_step
        if not is_first():
            return None
    steps = watch.restore_best() or done
    if not steps:
        raise BundleError(f"{run} holds no finished epoch; train on with --resume")
    logger.info("best on valid: step %d", steps)
    held: Mapping[str, Any] = {}
    if frozen:
        held = {"baselines": {"frozen": {part: frozen[part] for part in PARTS}}}
    elif start and _measured_alike(start, corpus, args):
        held = of_base(start.info.metrics, _learnt(start))
    return make_bundle(
        model, examples, corpus, base, args, run, steps=steps, held=held, watched=watch.figures
    )


def refit_bundle(
    corpus: Corpus,
    base: Base,
    args: TrainArgs,
    run: Path,
    start: Bundle,
) -> Bundle:
    """Fit heads, calibration and thresholds on a corpus, with a bundle's adapter as it is.

    What more rows are good for without an hour of training: they teach the heads, and what the states
    say of them is kept in `run`.

    Args:
        corpus: labelled turns, divided.
        base: what `start` was made for.
        args: seed, layer and name count.
        run: folder that keeps states and adapter.
        start: its adapter and marker rows ship again.

    Raises:
        BundleError: `start` has no adapter, other markers, reads another layer.
    """
    if start.adapter is None:
        raise BundleError(f"{start.info.name} has no adapter to fit heads on; use fit")
    if start.info.spec.layer != args.layer:
        raise BundleError(
            f"{start.info.name} reads layer {start.info.spec.layer}, asked for was {args.layer}"
        )
    examples = _encoded(corpus, base)
    spec = HeadSpec(FLAGS, int(base.model.config.hidden_size), args.layer)
    model = _model(base, args, _scaled(_small_heads(spec), None), examples, start)
    held = without_heads(start.info.metrics, _learnt(start))
    # A head that was fitted on what is `valid` now would win there whatever it is worth.
    before = _flags_of(start, corpus) if _measured_alike(start, corpus, args) else None
    return make_bundle(
        model,
        examples,
        corpus,
        base,
        args,
        run,
        steps=0,
        held=held,
        start=start,
        before=before,
    )


def _map(head: torch.nn.Linear) -> Linear:
    return Linear(head.weight.detach().double().numpy(), head.bias.detach().double().numpy())


def _learnt(start: Bundle) -> int:
    return int(start.info.training.get("rows", {}).get("train", 0))


def _flags_of(start: Bundle, corpus: Corpus) -> Linear | None:
    """Return a bundle's flag head as a map, where it hears what a new one would."""
    if start.info.spec.flags != FLAGS or start.info.embedder_id != corpus.listener_id:
        return None
    return _map(start.heads.flag)


def _measured_alike(start: Bundle, corpus: Corpus, args: TrainArgs) -> bool:
    """Tell whether a bundle's figures are of the turns that this run is measured with."""
    told = start.info.training
    counts = {part: len(getattr(corpus.split, part)) for part in PARTS}
    rows = told.get("rows", {})
    return told.get("seed") == args.seed and all(rows.get(p) == n for p, n in counts.items())


def _encoded(corpus: Corpus, base: Base) -> list[Example]:
    markers = choose_marker_ids(base.tokenizer, base.model.get_input_embeddings().weight.shape[0])
    encoder = PromptEncoder(
        base.tokenizer, markers, max_tokens=base.max_tokens, max_text_tokens=1024
    )
    return [
        encode_example(row, one, encoder, corpus.registry, base.languages)
        for row, one in zip(corpus.rows, corpus.judged, strict=True)
    ]


def _model(
    base: Base,
    args: TrainArgs,
    heads: ScaledHeads,
    learnt: Sequence[Example],
    start: Bundle | None,
) -> MultiHeadModel:
    """Put base, adapter and heads together; what is new in it is drawn from the run's seed."""
    set_seed(args.seed)
    return MultiHeadModel(
        base.model,
        base.tokenizer,
        choose_marker_ids(base.tokenizer, base.model.get_input_embeddings().weight.shape[0]),
        heads,
        lora=args.lora,
        positive_N=positive_weights([one.truth_N for one in learnt]),
        weights=args.weights,
        start=start,
        checkpointing=args.checkpointing,
    )


def _scaled(heads: StateHeads, scaling: Scaling | None) -> ScaledHeads:
    if scaling is None:
        size = heads.spec.hidden_size
        return ScaledHeads(heads, torch.zeros(size), torch.ones(size), len(ACTS))
    mean_H, scale_H = torch.tensor(scaling.mean_H), torch.tensor(scaling.scale_H)
    return ScaledHeads(heads, mean_H, scale_H, len(ACTS))


def _fitted_heads(
    model: MultiHeadModel, learnt: Sequence[Example], spec: HeadSpec, args: TrainArgs
) -> ScaledHeads:
    """Fit heads on what the model reads as it is: heads first, then all together."""
    if len(learnt) > _START_ROWS:
        learnt = random.Random(args.seed).sample(learnt, _START_ROWS)
    read = read_examples(model, learnt, args)
    truth_BN = np.array([one.truth_N for one in learnt]) > 0.5
    permitted_BN = np.array([one.permitted_N for one in learnt]) > 0.5
    delta = fit_delta(read.state_BH, np.array([one.delta_2 for one in learnt]), _START_STRENGTH)
    flags = fit_flags(read.state_BH, truth_BN, permitted_BN, _START_STRENGTH)
    heads = build_heads(spec, delta, flags, [0.5] * len(FLAGS))
    return _scaled(heads, Scaling.of(read.state_BH))


def _valid_figures(
    model: MultiHeadModel, examples: Sequence[Example], corpus: Corpus, args: TrainArgs
) -> dict[str, float]:
    """Return what the heads are worth on `valid`, before calibration."""
    valid = corpus.split.valid
    if not valid:
        return {"worth": 0.0}
    read = read_examples(model, [examples[at] for at in valid], args)
    logits_BN, delta_B2 = read.logits_BN, read.delta_B2
    gated_BN = np.where(corpus.labels.permitted_BN[list(valid)], logits_BN, -1e3)
    delta = delta_figures(corpus.labels.delta_B2[list(valid)], delta_B2)
    return {
        "worth": heads_worth(logits_BN, delta_B2, corpus.labels, valid),
        "auprc": macro_auprc(corpus.labels.truth_BN[list(valid)], gated_BN),
        **{name: float(value) for name, value in delta.items()},
    }


def _small_heads(spec: HeadSpec) -> StateHeads:
    heads = StateHeads(spec)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.mul_(0.1)
    return heads


def _trainer(
    model: MultiHeadModel,
    learnt: Sequence[Example],
    args: TrainArgs,
    run: Path,
    report_to: str,
    watch: ValidWatch,
) -> MultiHeadTrainer:
    packs = make_packs(
        learnt, max_tokens=args.pack_tokens, max_examples=args.pack_rows, seed=args.seed
    )
    compute = next(model.peft.parameters()).dtype
    cuda = torch.cuda.is_available()
    quantised = bool(getattr(model.peft.base_model.model, "is_loaded_in_4bit", False))
    half = compute if compute in (torch.bfloat16, torch.float16) else None
    if quantised:
        half = torch.bfloat16 if not cuda or torch.cuda.is_bf16_supported() else torch.float16
    logger.info("%d rows in %d packs", len(learnt), len(packs))
    options = TrainingArguments(
        output_dir=str(run),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=args.accumulate,
        learning_rate=args.lr,
        weight_decay=0.01,
        max_grad_norm=args.max_grad_norm,
        optim="paged_adamw_8bit" if cuda and quantised else "adamw_torch",
        bf16=half is torch.bfloat16,
        fp16=half is torch.float16,
        use_cpu=not cuda,
        logging_steps=5,
        save_steps=args.save_steps,
        save_total_limit=2,
        seed=args.seed,
        data_seed=args.seed,
        remove_unused_columns=False,
        label_names=["labels_1T"],
        dataloader_pin_memory=cuda,
        report_to=report_to,
        # Of several processes: one measures on `valid` while the others wait for it.
        ddp_timeout=_PATIENCE,
        ddp_find_unused_parameters=not args.checkpointing,
    )
    return MultiHeadTrainer(
        model,
        head_lr=args.head_lr,
        budget=TimeBudget(args.minutes) if args.minutes else None,
        args=options,
        callbacks=[watch],
        train_dataset=packs,
        data_collator=collate,
    )
