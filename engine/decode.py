"""Choosing tokens and turning them into a line: sampling, incremental text, tidying.

Knows nothing of models or caches: logits in, token out; ids in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# So many of the likeliest tokens are sorted for every line; few nuclei are larger.
_LIKELY = 256
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")
_STAGE_DIRECTION = re.compile(r"\([^)]*(?:\)|$)|\[[^\]]*(?:\]|$)|\*[^*]*(?:\*|$)")
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
        self.suppressed = torch.tensor(list(suppressed), dtype=torch.long)
        # Drawn on the CPU whatever the device, so that a seed gives the same line everywhere.
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits_V: torch.Tensor, generated: Sequence[int]) -> int:
        """Return the next token for logits of shape (V,) after the ids in `generated`.

        Raises:
            ValueError: the logits are not finite, so no choice among them means anything.
        """
        return choose_tokens(logits_V.unsqueeze(0), [self], [generated])[0]


def choose_tokens(
    logits_BV: torch.Tensor, samplers: Sequence[Sampler], generated: Sequence[Sequence[int]]
) -> list[int]:
    """Return the next token of B lines at once; each row's choice is what it would be alone.

    Args:
        logits_BV: any type and device; not changed.
        samplers: one a row; all suppress the same ids.
        generated: what each line holds so far.

    Raises:
        ValueError: logits are not finite; `bad_rows` says of which lines.
    """
    scores_BV = logits_BV.float().cpu()
    if scores_BV.data_ptr() == logits_BV.data_ptr():
        scores_BV = scores_BV.clone()
    bad = bad_rows(scores_BV)
    if bad:
        raise ValueError("the model gave logits that are not finite")
    scores_BV.index_fill_(1, samplers[0].suppressed, float("-inf"))
    for scores_V, sampler, held in zip(scores_BV, samplers, generated, strict=True):
        penalty = sampler.sampling.repetition_penalty
        if penalty != 1.0 and held:
            said = torch.tensor(sorted(set(held)))
            values = scores_V[said]
            scores_V[said] = torch.where(values > 0, values / penalty, values * penalty)
    chosen = scores_BV.argmax(dim=-1).tolist()
    drawn = [row for row, one in enumerate(samplers) if one.sampling.temperature > 0.0]
    if drawn:
        heat_B1 = torch.tensor([[samplers[row].sampling.temperature] for row in drawn])
        picked = scores_BV if len(drawn) == len(samplers) else scores_BV[drawn]
        tokens = _draw(picked / heat_B1, [samplers[row] for row in drawn])
        for row, token in zip(drawn, tokens, strict=True):
            chosen[row] = token
    return chosen


def bad_rows(logits_BV: torch.Tensor) -> list[int]:
    """Return the rows whose logits are not all finite."""
    finite_B = torch.isfinite(logits_BV).all(dim=-1)
    return [] if bool(finite_B.all()) else (~finite_B).nonzero().flatten().tolist()


def _draw(scores_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Draw one token a row from its nucleus (Holtzman et al., 2020), by inverting the distribution."""
    total_B = torch.logsumexp(scores_BV, dim=-1, keepdim=True)
    likely = min(_LIKELY, scores_BV.shape[1])
    top_BK, ids_BK = torch.topk(scores_BV, likely, dim=-1)
    reached_BK = torch.exp(top_BK - total_B).cumsum(dim=-1)
    tokens = []
    for row, sampler in enumerate(samplers):
        wanted = sampler.sampling.top_p
        reached_K, ids_K = reached_BK[row], ids_BK[row]
        if wanted > float(reached_K[-1]) and likely < scores_BV.shape[1]:
            # A flat distribution: the nucleus is larger than what was sorted for everybody.
            ordered_V, ids_K = torch.sort(scores_BV[row], descending=True, stable=True)
            reached_K = torch.exp(ordered_V - total_B[row]).cumsum(dim=-1)
        size = min(int(torch.searchsorted(reached_K, wanted)) + 1, len(reached_K))
        mass = reached_K[size - 1] * torch.rand((), generator=sampler.generator)
        at = min(int(torch.searchsorted(reached_K[:size], mass, right=True)), size - 1)
        tokens.append(int(ids_K[at]))
    return tokens


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
    """Return a line as it should be spoken: one paragraph, no speaker's name, no quotes around it.

    Stage directions, "(sighs)" or "*nods*", are taken out, one still open to its end as well: what an
    NPC does is for the flags to say, and a voice would read them aloud.
    """
    names = "|".join(re.escape(name) for name in (speaker, "NPC") if name)
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
