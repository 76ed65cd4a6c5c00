"""`python -m training train`: heads first on frozen features, then adapter and heads together.

    corpus → examples → packs → MultiHeadTrainer → read all rows → calibrate, cut → bundle

A run lives in a folder: checkpoints, log, and the choices it started from, so that it can be killed at
any moment and resumed to the same result. On a GPU the base is loaded in 4-bit (QLoRA), on a CPU in
bf16 where the processor has it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from tqdm import tqdm
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from engine.prompt import PromptEncoder, choose_marker_ids
from engine.schema import FLAGS
from heads.bundle import Bundle, BundleError, BundleInfo
from heads.modules import StateHeads
from heads.spec import HeadSpec
from training.bad_faith import choose_bad_faith, with_bad_faith
from training.baselines import Scores
from training.card import render_card
from training.collate import collate
from training.corpus import Corpus
from training.dataset import Example, encode_example, make_packs
from training.fit import data_digest, heads_worth
from training.fit_heads import (
    Linear,
    Scaling,
    apply_platt,
    build_heads,
    calibrate,
    fit_delta,
    fit_flags,
    set_threshold_head,
    steady_thresholds,
)
from training.losses import DELTA_UNIT, LossWeights
from training.metrics import delta_figures, f1_scores, macro_auprc
from training.model import LoraArgs, MultiHeadModel, positive_weights
from training.refit import WORTH, Trained, join, refit
from training.report import PARTS, Method, report
from training.rubric import ACTS
from training.scaled import ScaledHeads
from training.trainer import MultiHeadTrainer, TimeBudget
from training.watch import ValidWatch

logger = logging.getLogger(__name__)

# Strength of the heads that a run starts with when it goes on from a bundle.
_START_STRENGTH = 0.001


@dataclass(frozen=True)
class TrainArgs:
    """What a run was asked for; kept in the bundle.

    Args:
        seed: of the division, the packs and every draw.
        epochs: passes over the training part.
        minutes: of training at most; 0: as long as the epochs take.
        lr, head_lr: learning rates of the adapter (and marker rows), and of the heads.
        layer: decoder layer that the heads read, from 1; -1: the final norm.
        pack_tokens, pack_rows: most ids, and most rows, that a pack reads.
        accumulate: packs a step.
        save_steps: steps between checkpoints.
        lora, weights: size of the adapter, and weights of the loss.
        max_grad_norm: where a step's gradient is clipped.
        checkpointing: recompute activations: less memory, more time.
        start: name of the bundle that the run went on from; empty: from the base.
        name: of the bundle.
    """

    seed: int = 7
    epochs: float = 3.0
    minutes: float = 0.0
    lr: float = 5e-4
    head_lr: float = 1e-3
    layer: int = -1
    pack_tokens: int = 2000
    pack_rows: int = 32
    accumulate: int = 2
    save_steps: int = 25
    lora: LoraArgs = field(default_factory=LoraArgs)
    weights: LossWeights = field(default_factory=LossWeights)
    max_grad_norm: float = 5.0
    checkpointing: bool = False
    start: str = ""
    name: str = "multi-head"


@dataclass(frozen=True)
class Base:
    """A loaded base with what a bundle says of it."""

    model: Any
    tokenizer: Any
    id: str
    fingerprint: str
    languages: tuple[str, ...]
    max_tokens: int = 1536


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
) -> Bundle:
    """Train adapter and heads on a corpus and return the bundle; its adapter lies in `run`.

    Args:
        corpus: labelled turns, divided.
        base: what is trained; its marker rows are not yet installed.
        args: how.
        run: folder for checkpoints, log and adapter.
        heads: to start from, fitted on frozen features at the same layer; None: small random ones.
        scaling: of those features; None: as they are.
        frozen: figures of those heads, which go into the report as a baseline.
        start: bundle whose adapter and marker rows the run goes on from; the heads are then fitted anew
            on what that adapter reads.
        resume: go on from the last checkpoint in `run`, if there is one.
        finish: train no further; make the bundle from the best epoch that `run` holds.
        report_to: "tensorboard", "trackio" or "none".

    Raises:
        ValueError: `heads` reads another layer than `args.layer`.
        BundleError: there is no epoch to finish with.
    """
    set_seed(args.seed)
    markers = choose_marker_ids(base.tokenizer, base.model.get_input_embeddings().weight.shape[0])
    encoder = PromptEncoder(
        base.tokenizer, markers, max_tokens=base.max_tokens, max_text_tokens=1024
    )
    examples = [
        encode_example(row, one, encoder, corpus.registry, base.languages)
        for row, one in zip(corpus.rows, corpus.judged, strict=True)
    ]
    spec = HeadSpec(FLAGS, int(base.model.config.hidden_size), args.layer)
    if heads is None:
        heads = _small_heads(spec)
    elif heads.spec != spec:
        raise ValueError(f"the heads read layer {heads.spec.layer}, the run layer {args.layer}")
    learnt = [examples[index] for index in corpus.split.train]
    model = MultiHeadModel(
        base.model,
        base.tokenizer,
        markers,
        _scaled(heads, scaling),
        lora=args.lora,
        positive_N=positive_weights([one.truth_N for one in learnt]),
        weights=args.weights,
        start=start,
        checkpointing=args.checkpointing,
    )
    if start and not finish:
        model.heads = _fitted_heads(model, learnt, spec, args)
    watch = ValidWatch(run, model, lambda: _valid_figures(model, examples, corpus, args))
    done = 0
    if not finish:
        trainer = _trainer(model, learnt, args, run, report_to, watch)
        last = get_last_checkpoint(str(run)) if resume and run.is_dir() else None
        if last is None:
            watch.clear()
        trainer.train(resume_from_checkpoint=last)
        done = trainer.state.global_step
    steps = watch.restore_best() or done
    if not steps:
        raise BundleError(f"{run} holds no finished epoch; train on with --resume")
    logger.info("best on valid: step %d", steps)
    return make_bundle(
        model, examples, corpus, base, args, run, steps=steps, frozen=frozen, watched=watch.figures
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


@dataclass(frozen=True)
class Read:
    """What the heads read for B examples, and the states that they read it from."""

    logits_BN: np.ndarray
    delta_B2: np.ndarray
    threshold_BN: np.ndarray
    state_BH: np.ndarray


def read_examples(model: MultiHeadModel, examples: Sequence[Example], args: TrainArgs) -> Read:
    """Read every example."""
    device = next(model.heads.parameters()).device
    place = {id(one): index for index, one in enumerate(examples)}
    count = len(FLAGS)
    logits, thresholds = np.zeros((len(examples), count)), np.zeros((len(examples), count))
    deltas = np.zeros((len(examples), 2))
    states = np.zeros((len(examples), model.spec.hidden_size), dtype=np.float32)
    packs = make_packs(
        examples, max_tokens=args.pack_tokens, max_examples=args.pack_rows, seed=args.seed
    )
    half = next(model.peft.parameters()).dtype
    mixed = (
        torch.autocast(device.type, half)
        if half in (torch.bfloat16, torch.float16)
        else nullcontext()
    )
    model.eval()
    with model.merged():
        for pack in tqdm(packs, desc="reading rows", unit="pack"):
            inputs = {name: tensor.to(device) for name, tensor in collate([pack]).items()}
            with mixed:
                outputs, state_KH = model.read(**inputs)
            at = [place[id(one)] for one in pack.examples]
            logits[at] = outputs.flag_logits_BN.float().cpu().numpy()
            deltas[at] = outputs.delta_B2.float().cpu().numpy()
            thresholds[at] = outputs.threshold_BN.float().cpu().numpy()
            states[at] = state_KH.cpu().numpy()
    return Read(logits, deltas, thresholds, states)


def _trained(heads: ScaledHeads) -> tuple[Trained, Linear]:
    """Return the trained heads as maps on hidden states, and the threshold head's logits."""

    def plain(head: torch.nn.Linear, unit: float = 1.0) -> Linear:
        weight_NH, bias_N = heads.plain(head, unit)
        return Linear(weight_NH.numpy(), bias_N.numpy())

    trained = Trained(plain(heads.flag), plain(heads.delta, DELTA_UNIT), plain(heads.act))
    return trained, plain(heads.threshold)


def _states(
    model: MultiHeadModel, examples: Sequence[Example], args: TrainArgs, run: Path, *, key: str
) -> np.ndarray:
    """Return the states of all rows; kept in `run` for whoever tries another head on them.

    `key` says of which weights and rows they are: reading takes minutes.
    """
    path = run / "states.npz"
    if path.is_file():
        with np.load(path) as held:
            if str(held["key"]) == key:
                states: np.ndarray = held["state"]
                return states
    read = read_examples(model, examples, args)
    run.mkdir(parents=True, exist_ok=True)
    np.savez(path, key=key, state=read.state_BH)
    return read.state_BH


def make_bundle(
    model: MultiHeadModel,
    examples: Sequence[Example],
    corpus: Corpus,
    base: Base,
    args: TrainArgs,
    run: Path,
    *,
    steps: int,
    frozen: Mapping[str, Any] | None = None,
    watched: Mapping[str, Any] | None = None,
) -> Bundle:
    """Calibrate, choose thresholds on `valid`, measure, and put the bundle together."""
    adapter = run / "adapter"
    model.save_adapter(adapter)
    model.merge()  # as it is served: what is calibrated must be what is read there
    state_BH = _states(model, examples, args, run, key=f"{steps}/{data_digest(corpus.rows)}")
    trained, threshold = _trained(model.heads)
    chosen = refit(corpus, state_BH, trained)
    joined_BW = join(state_BH, corpus.meaning_BM)
    logits_BN, delta_B2 = chosen.flags(joined_BW), chosen.deltas(joined_BW)
    learnt_BN = expit(threshold(state_BH))
    valid, labels = list(corpus.split.valid), corpus.labels
    truth_BN, use_BN = labels.truth_BN[valid], labels.permitted_BN[valid]
    platts = calibrate(logits_BN[valid], truth_BN, use_BN)
    probability_BN = apply_platt(logits_BN, platts)
    constant = steady_thresholds(probability_BN[valid], truth_BN, use_BN)
    by_source = {
        "constant": np.broadcast_to(np.array(constant), learnt_BN.shape),
        "head": learnt_BN,
    }
    on_valid = {
        name: f1_scores(truth_BN, (probability_BN[valid] >= cut_BN[valid]) & use_BN)
        for name, cut_BN in by_source.items()
    }
    source = max(on_valid, key=lambda name: on_valid[name]["flag_macro_f1"])
    cut_BN, bad_faith = by_source[source], None
    by_limit: dict[str, dict[str, float]] = {}
    if chosen.acts:
        act_BA = chosen.act_probabilities(joined_BW)
        bad_faith, by_limit = choose_bad_faith(corpus, probability_BN >= cut_BN, act_BA)
        cut_BN = with_bad_faith(bad_faith, act_BA, cut_BN)
    figures = report(corpus, base.languages, Method(Scores(probability_BN, delta_B2), cut_BN))
    if frozen:
        figures["baselines"]["frozen"] = {part: frozen[part] for part in PARTS}
    figures["thresholds_on_valid"] = on_valid
    figures["refit_on_valid"] = chosen.figures
    figures["bad_faith_on_valid"] = by_limit
    figures["valid_by_step"] = dict(watched or {})
    spec = replace(
        model.spec,
        meaning_size=corpus.meaning_BM.shape[1],
        acts=tuple(ACTS) if chosen.acts else (),
    )
    heads = build_heads(spec, chosen.delta, chosen.flags, constant, WORTH if chosen.acts else None)
    if source == "head":
        set_threshold_head(heads, threshold)
    info = BundleInfo(
        name=args.name,
        spec=spec,
        embedder_id=corpus.embedder_id,
        bad_faith=bad_faith,
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        languages=base.languages,
        markers=model.markers,
        calibration=dict(zip(FLAGS, platts, strict=True)),
        threshold_source=source,
        thresholds=dict(zip(FLAGS, constant, strict=True)),
        metrics=figures,
        training={
            "command": "python -m training train",
            **asdict(args),
            "steps": steps,
            "rows": {name: len(part) for name, part in asdict(corpus.split).items()},
            "data_sha256": data_digest(corpus.rows),
        },
    )
    return Bundle(
        info=info,
        heads=heads,
        marker_rows_MH=model.marker_rows(),
        adapter=adapter,
        card=render_card(info, adapter=True),
    )
