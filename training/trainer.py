"""`MultiHeadTrainer`: Hugging Face's Trainer over packs, with every part of the loss in the log.

A step may be one pack or, by accumulation, many: the losses are averaged over the examples (and reply
ids) of the whole step, so that the gradient does not depend on how they were packed. Checkpoints hold
what is trained and nothing of the base. Knows nothing of rows, gates or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.collate import IGNORED
from training.model import MultiHeadModel
from training.processes import of_the_first

_WARMUP_STEPS = 20


class MultiHeadTrainer(Trainer):
    """Trains a `MultiHeadModel` on packs.

    Args:
        model: what is trained.
        head_lr: learning rate of the heads; the adapter and the markers' rows have `args`'s.
        budget: stops the run, and stretches the schedule over what it allows.
        options: as `Trainer` takes them.
    """

    def __init__(
        self,
        model: MultiHeadModel,
        *,
        head_lr: float,
        budget: TimeBudget | None = None,
        **options: Any,
    ) -> None:
        self._head_lr = head_lr
        self._budget = budget
        self._sums: dict[str, float] = {}
        if budget:
            options["callbacks"] = [*(options.get("callbacks") or ()), budget]
        super().__init__(model=model, **options)
        # The losses below are averages over the step, whatever it was accumulated from.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch a step's packs; count its examples and reply ids over all processes, shape (2,)."""
        batches: list[Any] = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        examples = sum(len(batch["state_K"]) for batch in batches)
        replies = sum(int((batch["labels_1T"] != IGNORED).sum()) for batch in batches)
        counts_2 = torch.tensor([examples, replies], dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            counts_2 = self.accelerator.reduce(counts_2, "sum")
        return batches, counts_2

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a pack's share of the step's loss."""
        parts = model(**inputs)
        if num_items_in_batch is None:
            examples = float(len(inputs["state_K"]))
            replies = float((inputs["labels_1T"] != IGNORED).sum())
        else:
            examples, replies = num_items_in_batch.tolist()
        inner: MultiHeadModel = self.accelerator.unwrap_model(model)
        # Processes average their gradients, and each counted the examples of all.
        share = self.args.world_size
        loss = parts.weighted(inner.weights, examples=examples, reply_ids=replies) * share
        self._note(parts.detached(), inputs)
        return (loss, parts) if return_outputs else loss

    def _note(self, parts: dict[str, float], inputs: dict[str, Any]) -> None:
        counts = {
            "examples": float(len(inputs["state_K"])),
            "replies": float((inputs["labels_1T"] != IGNORED).sum()),
        }
        for name, value in {**parts, **counts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add each part of the loss, averaged since the last log."""
        if self._sums and "loss" in logs:
            sums, self._sums = self._sums, {}
            logs["loss_language"] = sums.pop("language") / max(sums["replies"], 1.0)
            for name in ("delta", "flags", "threshold", "asks", "act"):
                logs[f"loss_{name}"] = sums[name] / max(sums["examples"], 1.0)
        super().log({key: round(value, 6) for key, value in logs.items()}, *args, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW (in the kind that `args` names) with the heads at a rate of their own."""
        if self.optimizer is None:
            inner: MultiHeadModel = self.accelerator.unwrap_model(self.model)
            heads = list(inner.heads.parameters())
            known = {id(parameter) for parameter in heads}
            rest = [p for p in inner.parameters() if p.requires_grad and id(p) not in known]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            options.pop("lr", None)
            self.optimizer = kind(
                [
                    {"params": rest, "lr": self.args.learning_rate},
                    {"params": heads, "lr": self._head_lr},
                ],
                **options,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Warm up, then fall linearly to a twentieth over the steps that the budget allows."""
        if self.lr_scheduler is None:
            budget = self._budget

            def rate(step: int) -> float:
                last = budget.planned(num_training_steps) if budget else num_training_steps
                warm = min(_WARMUP_STEPS, max(last // 10, 1))
                if step < warm:
                    return (step + 1) / warm
                return max(0.05, (last - step) / max(last - warm, 1))

            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), rate)
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        inner: MultiHeadModel = self.accelerator.unwrap_model(self.model)
        super()._save(output_dir, inner.trained_state())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Checkpoints hold no base on purpose; only a surplus tensor is worth a word."""
        if load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint holds tensors that this model has no place for, "
                f"{load_result.unexpected_keys[0]!r} among them; it is from another run"
            )


class TimeBudget(TrainerCallback):
    """Ends a run after so many minutes of training, and tells how many steps that will be.

    Args:
        minutes: of wall-clock time, from the first step on.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._started: float | None = None
        self._elapsed = 0.0
        self._first = 0
        self._steps = 0

    def planned(self, most: int) -> int:
        """Return how many steps the run will have: `most`, or fewer where time ends it before."""
        if self._started is None or self._steps - self._first < 3:
            return most
        each = self._elapsed / (self._steps - self._first)
        return min(most, self._first + int(self._seconds / max(each, 1e-9)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started, self._first = time.monotonic(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop, with a checkpoint, once the time is used up."""
        self._steps = state.global_step
        if self._started is None:
            return
        # One clock for all processes: with their own they would stop, and set their rates, apart.
        self._elapsed = of_the_first(time.monotonic() - self._started, args.device)
        if self._elapsed > self._seconds:
            control.should_training_stop = True
            control.should_save = True
