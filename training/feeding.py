"""Reading and writing with a served model, one sequence after the other, each beginning fed once.

    examples, sorted → what one shares with the one before stays in the cache → heads, reply's loss

Rows of an NPC's stage share half their ids or more, so that seven hundred rows take minutes on a CPU.
Knows nothing of labels, figures or what a flag means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import DynamicCache

from engine.decision import Reading
from engine.decode import Sampling, tidy, whole_sentences
from engine.model import LanguageModel, Prefill, run_decoder
from engine.schema import FLAGS
from heads.spec import DELTA_NAMES, FINAL_NORM
from training.bad_faith import OUT_OF_REACH
from training.baselines import Scores
from training.dataset import Example


@dataclass(frozen=True)
class Fed:
    """The decoder's outputs at the newest T positions: of the final norm, and of the heads' layer."""

    last_TH: torch.Tensor
    read_TH: torch.Tensor


class Feeder:
    """Feeds sequences to a model; what one shares with the sequence before is not fed again.

    Args:
        model: base, adapter and heads, as the engine serves them.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._cache: Any = None
        self._fed: list[int] = []

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], need: int) -> Fed:
        """Feed a sequence; return the outputs of the positions from `need` to its last."""
        start = min(_shared(self._fed, ids), need)
        self._keep(start)
        decoder, layer = self.model.model.model, self.model.bundle.info.spec.layer
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        hooks = []
        if layer != FINAL_NORM:
            hooks.append(decoder.layers[layer - 1].register_forward_hook(keep))
        fresh_1T = torch.tensor([list(ids[start:])], device=self.model.device)
        try:
            last_1TH = run_decoder(decoder, fresh_1T, self._cache).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        self._fed = list(ids)
        read_1TH = kept[0] if kept else last_1TH
        # A layer's output may come without its batch dimension.
        read_TH = read_1TH.reshape(-1, read_1TH.shape[-1])
        return Fed(last_1TH[0, need - start :], read_TH[need - start :])

    def line(self, ids: Sequence[int], state: int, speaker: str, sampling: Sampling) -> str:
        """Write the line that follows `ids`, as the engine writes it.

        Args:
            ids: prompt and <ACT> … <NPC>.
            state: index of <STATE>; what stands behind it is fed with the cache of what is before.
            speaker: whose name is taken off the line.
            sampling: how tokens are chosen.
        """
        self.feed(ids[: state + 1], state)
        prefill = Prefill(_NOTHING, torch.empty(0), self._cache, state + 1)
        text, finished = "", False
        writing = self.model.generate(prefill, ids[state + 1 :], sampling)
        try:
            while True:
                text = next(writing)
        except StopIteration as end:
            finished = bool(end.value)
        self._back_to(state + 1)
        line = tidy(text, speaker)
        return line if finished else whole_sentences(line)

    @torch.inference_mode()
    def text(self, ids: Sequence[int], *, most: int, enough: Callable[[str], bool]) -> str:
        """Write on from `ids`, greedily, until an end, `most` tokens, or `enough` says so."""
        fed, written, said = self.feed(ids, len(ids) - 1), list[int](), ""
        hidden_H = fed.last_TH[-1]
        while len(written) < most:
            token = int(self.model.model.lm_head(hidden_H[None])[0].argmax())
            if token in self.model.stop_ids:
                break
            written.append(token)
            said = self.model.tokenizer.decode(written, skip_special_tokens=True)
            if enough(said):
                break
            pending_1T = torch.tensor([[token]], device=self.model.device)
            decoder = self.model.model.model
            hidden_H = run_decoder(decoder, pending_1T, self._cache).last_hidden_state[0, -1]
        self._back_to(len(ids))
        return said

    def _keep(self, length: int) -> None:
        """Cut the cache to its first `length` ids."""
        if length == 0:
            self._cache = DynamicCache(config=self.model.model.config)
        else:
            self._back_to(length)
        self._fed = self._fed[:length]

    def _back_to(self, length: int) -> None:
        surplus = int(self._cache.get_seq_length()) - length
        if surplus:
            self._cache.crop(-surplus)


_NOTHING = Reading(0.0, 0.0, {}, {})


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading ids two sequences have in common."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


@dataclass(frozen=True)
class Readings:
    """What a model says of B examples, in their order.

    `threshold_BN` are the thresholds in force (out of reach where the player seems to deceive);
    `loss_B` the sum over a reply's ids of their negative log-likelihood, in nats, and `ids_B` how many
    they are (0 where there is no reply to learn).
    """

    scores: Scores
    threshold_BN: np.ndarray
    loss_B: np.ndarray
    ids_B: np.ndarray


def read_examples(
    model: LanguageModel, examples: Sequence[Example], *, replies: bool = True, what: str = ""
) -> Readings:
    """Read examples one by one: heads at <STATE>, and where asked for the reply, teacher-forced.

    Args:
        model: as the engine serves it.
        examples: from `training.dataset`, in any order.
        replies: whether to measure the replies too.
        what: is said on the progress bar.
    """
    count = len(examples)
    probability_BN, threshold_BN = np.zeros((count, len(FLAGS))), np.zeros((count, len(FLAGS)))
    delta_B2 = np.zeros((count, len(DELTA_NAMES)))
    loss_B, ids_B = np.zeros(count), np.zeros(count, dtype=int)
    feeder = Feeder(model)
    order = sorted(range(count), key=lambda at: examples[at].ids)
    for at in tqdm(order, desc=what or "reading rows", unit="row"):
        one = examples[at]
        ids = one.ids if replies else one.ids[: one.state + 1]
        fed = feeder.feed(ids, one.state)
        reading = model.read_heads(fed.read_TH[:1].float().cpu(), one.meaning, one.evidence)
        probability_BN[at] = [reading.probabilities[flag] for flag in FLAGS]
        threshold_BN[at] = [
            OUT_OF_REACH if reading.deceives else reading.thresholds[flag] for flag in FLAGS
        ]
        delta_B2[at] = [reading.trust, reading.relationship]
        if replies and one.reply_tokens:
            loss_B[at], ids_B[at] = _reply_loss(model, one, fed), one.reply_tokens
    return Readings(Scores(probability_BN, delta_B2), threshold_BN, loss_B, ids_B)


@torch.inference_mode()
def _reply_loss(model: LanguageModel, one: Example, fed: Fed) -> float:
    """Return the summed loss of a reply's ids; each is predicted by the position before it."""
    first = one.reply - 1 - one.state
    logits_RV = model.model.lm_head(fed.last_TH[first:-1]).float()
    target_R = torch.tensor(one.ids[one.reply :], device=logits_RV.device)
    return float(F.cross_entropy(logits_RV, target_R, reduction="sum"))
