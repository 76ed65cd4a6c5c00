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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from engine.prompt import PromptEncoder, choose_marker_ids
from engine.schema import FLAGS
from heads.bundle import Bundle, BundleError, BundleInfo
from heads.modules import StateHeads
from heads.spec import HeadSpec
from training.baselines import Scores
from training.card import render_card
from training.collate import collate
from training.corpus import Corpus
from training.dataset import Example, encode_example, make_packs
from training.fit import data_digest, heads_worth
from training.fit_heads import Scaling, apply_platt, calibrate, choose_thresholds, fit_delta
from training.losses import LossWeights
from training.metrics import delta_figures, f1_scores, macro_auprc
from training.model import LoraArgs, MultiHeadModel, positive_weights
from training.report import PARTS, Method, report
from training.rubric import ACTS
from training.scaled import ScaledHeads
from training.trainer import MultiHeadTrainer, TimeBudget
from training.watch import ValidWatch

logger = logging.getLogger(__name__)

# Strengths of the ridges that the trained delta head is held against.
_RIDGES = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01)


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
        checkpointing=args.checkpointing,
    )
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


def choose_delta(
    read: Read, corpus: Corpus, heads: StateHeads
) -> tuple[StateHeads, np.ndarray, dict[str, float]]:
    """Return heads whose delta serves `valid` best, its deltas (B, 2), and what each one reached.

    Candidates are the head that was trained along and ridges on what the adapter made of the same rows:
    a thousand deltas are few for steps of gradient, and a ridge takes the best of them at once.
    """
    train, valid, truth_B2 = (
        list(corpus.split.train),
        list(corpus.split.valid),
        corpus.labels.delta_B2,
    )
    found: dict[str, np.ndarray] = {"trained": read.delta_B2}
    maps = {f"ridge {one:g}": one for one in _RIDGES}
    fits = {
        name: fit_delta(read.state_BH[train], truth_B2[train], strength)
        for name, strength in maps.items()
    }
    found |= {name: np.tanh(fit(read.state_BH)) for name, fit in fits.items()}
    reached = {
        name: float(delta_figures(truth_B2[valid], one[valid])["delta_spearman"])
        for name, one in found.items()
    }
    best = max(reached, key=lambda name: reached[name])
    if best in fits:
        with torch.no_grad():
            heads.delta.weight.copy_(torch.from_numpy(fits[best].weight_NH))
            heads.delta.bias.copy_(torch.from_numpy(fits[best].bias_N))
    return heads, found[best], {**reached, "best": reached[best]}


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
    read = read_examples(model, examples, args)
    logits_BN, learnt_BN = read.logits_BN, read.threshold_BN
    heads, delta_B2, deltas_on_valid = choose_delta(read, corpus, model.heads.fold())
    run.mkdir(parents=True, exist_ok=True)
    # For whoever wants to try another calibration or rule: reading the rows takes minutes.
    np.savez(run / "readings.npz", logits=logits_BN, delta=delta_B2, threshold=learnt_BN)
    valid, labels = list(corpus.split.valid), corpus.labels
    truth_BN, use_BN = labels.truth_BN[valid], labels.permitted_BN[valid]
    platts = calibrate(logits_BN[valid], truth_BN, use_BN)
    probability_BN = apply_platt(logits_BN, platts)
    constant = choose_thresholds(probability_BN[valid], truth_BN, use_BN)
    by_source = {
        "constant": np.broadcast_to(np.array(constant), learnt_BN.shape),
        "head": learnt_BN,
    }
    on_valid = {
        name: f1_scores(truth_BN, (probability_BN[valid] >= cut_BN[valid]) & use_BN)
        for name, cut_BN in by_source.items()
    }
    source = max(on_valid, key=lambda name: on_valid[name]["flag_macro_f1"])
    figures = report(
        corpus, base.languages, Method(Scores(probability_BN, delta_B2), by_source[source])
    )
    if frozen:
        figures["baselines"]["frozen"] = {part: frozen[part] for part in PARTS}
    figures["thresholds_on_valid"] = on_valid
    figures["delta_on_valid"] = deltas_on_valid
    figures["valid_by_step"] = dict(watched or {})
    info = BundleInfo(
        name=args.name,
        spec=model.spec,
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
