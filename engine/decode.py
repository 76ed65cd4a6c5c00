"""Choosing tokens and turning them into a line: sampling, incremental text, tidying.

Knows nothing of models or caches: logits in, token out; ids in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.serving.products import POOL, have_loops, use_threads

# The score of what is never chosen: compiled loops know no infinity.
_NEVER = np.float32(-1e30)
# Tokens of at most so small a share of the likeliest one's probability are left out of a nucleus first.
_FLOORS = (1e-2, 1e-4, 0.0)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")
_STAGE_DIRECTION = re.compile(r"\([^)]*(?:\)|$)|\[[^\]]*(?:\]|$)|\*[^*]*(?:\*|$)")
# Never to be seen, and a game's strings do not hold all of them; a model of bytes may still write some.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’"))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 is greedy. All plain values, so it can be pickled."""

    temperature: float
    top_p: float
    repetition_penalty: float
    max_new_tokens: int
    seed: int


class Sampler:
    """What chooses one token after the other for one line.

    The repetition penalty counts what was generated and not the prompt: an NPC must be free to say
    the name of the item it hands over.

    Args:
        sampling: the parameters.
        suppressed: ids that are never chosen (markers, control tokens).
    """

    def __init__(self, sampling: Sampling, suppressed: Sequence[int]) -> None:
        self.sampling = sampling
        self._suppressed = np.array(list(suppressed), dtype=np.int64)
        # Drawn on the CPU whatever the device, so that a seed gives the same line everywhere.
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def choose(self, logits_V: torch.Tensor, generated: Sequence[int]) -> int:
        """Return the next token for logits of shape (V,) after the ids in `generated`.

        Raises:
            ValueError: the logits are not finite, so no choice among them means anything.
        """
        token = choose_tokens(logits_V[None], [self], [generated])[0]
        if token is None:
            raise ValueError("the model gave logits that are not finite")
        return token

    def weigh(self, scores_V: npt.NDArray[np.float32], generated: Sequence[int]) -> None:
        """Take out what is never chosen, and make what was said before less likely."""
        scores_V[self._suppressed] = _NEVER
        penalty = self.sampling.repetition_penalty
        if penalty != 1.0 and generated:
            said = np.unique(np.asarray(generated))
            values = scores_V[said]
            scores_V[said] = np.where(values > 0, values / penalty, values * penalty)

    def chance(self) -> float:
        """Return the next number from 0 to 1, which is all that is random about a token."""
        return float(self._random.random())

    def draw(self, weight_V: npt.NDArray[np.float32]) -> int:
        """Draw from the nucleus (Holtzman et al., 2020), by inverting the distribution.

        Args:
            weight_V: probabilities, as multiples of the likeliest one's.
        """
        wanted = self.sampling.top_p * float(weight_V.sum(dtype=np.float64))
        for floor in _FLOORS:
            # Sorting the vocabulary takes longer than a small model's step; few nuclei need it.
            likely_L = np.flatnonzero(weight_V > floor)
            if floor == 0.0 or weight_V[likely_L].sum(dtype=np.float64) >= wanted:
                break
        likely_L = likely_L[np.argsort(-weight_V[likely_L], kind="stable")]
        reached_L = weight_V[likely_L].cumsum(dtype=np.float64)
        size = min(int(np.searchsorted(reached_L, wanted)) + 1, len(reached_L))
        mass = reached_L[size - 1] * self.chance()
        drawn = min(int(np.searchsorted(reached_L, mass, side="right")), size - 1)
        return int(likely_L[drawn])


def choose_tokens(
    logits_BV: torch.Tensor,
    samplers: Sequence[Sampler],
    generated: Sequence[Sequence[int]],
    *,
    own: bool = False,
) -> list[int | None]:
    """Return the next token of B lines, None where a line's logits are not finite.

    Each row's choice is what it would be alone.

    Args:
        logits_BV: any type and device; not changed unless they are ours.
        samplers: one a row.
        generated: what each line holds so far.
        own: the logits are nobody else's, and need not be copied to be worked with.
    """
    scores_BV = logits_BV.detach().to("cpu", torch.float32, copy=not own)
    if scores_BV.is_contiguous() and have_loops():
        return _choose_compiled(scores_BV.numpy(), samplers, generated)
    return choose_plainly(scores_BV, samplers, generated)


def _choose_compiled(
    scores_BV: npt.NDArray[np.float32],
    samplers: Sequence[Sampler],
    generated: Sequence[Sequence[int]],
) -> list[int | None]:
    """See `choose_tokens`; a row at a time, each thread some of them."""
    from engine.serving import loops

    count = len(samplers)
    finite_B, tokens_B = np.empty(count, np.bool_), np.zeros(count, np.int64)
    heat_B, top_p_B, chance_B = np.zeros(count, np.float32), np.zeros(count), np.zeros(count)
    loops.finite_rows(scores_BV, finite_B)
    for row, (sampler, held) in enumerate(zip(samplers, generated, strict=True)):
        if not finite_B[row]:
            tokens_B[row] = -1
            continue
        sampler.weigh(scores_BV[row], held)
        heat_B[row], top_p_B[row] = sampler.sampling.temperature, sampler.sampling.top_p
        if sampler.sampling.temperature > 0.0:
            chance_B[row] = sampler.chance()
    given = (scores_BV, heat_B, top_p_B, chance_B, tokens_B)
    if count == 1:  # in this thread: a worker that was forked must not start others
        loops.draw_some(*given, 0, 1)
    else:
        with POOL:
            loops.draw_tokens(*given, min(use_threads(), count))
    return [None if token < 0 else int(token) for token in tokens_B]


def choose_plainly(
    scores_BV: torch.Tensor, samplers: Sequence[Sampler], generated: Sequence[Sequence[int]]
) -> list[int | None]:
    """See `choose_tokens`; for scores in float32 on the CPU, which are overwritten."""
    finite, best, greedy = [], [], []
    for scores_V, sampler, held in zip(scores_BV.numpy(), samplers, generated, strict=True):
        finite.append(bool(np.isfinite(scores_V.max()) and np.isfinite(scores_V.min())))
        sampler.weigh(scores_V, held)
        best.append(scores_V.max())
        greedy.append(int(scores_V.argmax()) if sampler.sampling.temperature <= 0.0 else None)
    # All rows at once, in place and over the whole vocabulary: that is what threads and vectors are
    # good at; picking out the likely tokens first takes longer.
    heat_B = torch.tensor([one.sampling.temperature or 1.0 for one in samplers])
    best_B = torch.from_numpy(np.array(best, dtype=np.float32))
    weight_BV = scores_BV.sub_(best_B[:, None]).div_(heat_B[:, None]).exp_().numpy()
    chosen: list[int | None] = []
    for weight_V, sampler, sound, token in zip(weight_BV, samplers, finite, greedy, strict=True):
        if not sound:
            chosen.append(None)
        else:
            chosen.append(sampler.draw(weight_V) if token is None else token)
    return chosen


class TextStream:
    """Turns growing ids into growing text without ever showing half a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def push(self, token: int) -> str | None:
        """Add a token; return all text so far, or None while a character is still incomplete."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # Bytes that a later token did not complete stay broken, so nobody needs to see them.
        return None if text.endswith("\ufffd") else text.replace("\ufffd", "")


def tidy(text: str, speaker: str) -> str:
    """Return a line as it should be spoken: one paragraph, no speaker's name, no quotes around it, no
    control characters.

    Stage directions, "(sighs)" or "*nods*", are taken out, one still open to its end as well: what an
    NPC does is for the flags to say, and a voice would read them aloud.
    """
    names = "|".join(re.escape(name) for name in (speaker, "NPC") if name)
    text = _CONTROL.sub("", text)
    text = re.sub(rf"^(?:{names})\s*:\s*", "", text.lstrip(), flags=re.IGNORECASE)
    text = _STAGE_DIRECTION.sub(" ", text).lstrip().split("\n", 1)[0]
    for opener, closer in _QUOTES:
        if opener == closer == "'" and not text[1:].endswith("'"):
            continue  # an apostrophe, as in 'Tis
        if text.startswith(opener) and closer not in text[1:-1]:
            text = text[1:].removesuffix(closer)
            break
    return re.sub(r"\s+", " ", text).strip()


def whole_sentences(text: str) -> str:
    """Cut a line that ran out of tokens back to its last whole sentence, if it has one."""
    ends = list(_SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else text


def stops_line(text: str, stops: Iterable[str] = ("\n",)) -> bool:
    """Tell whether the line is over: a line break after its first word."""
    return any(stop in text.lstrip() for stop in stops)
