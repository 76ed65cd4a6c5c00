"""Choosing tokens and turning them into a line: sampling, incremental text, tidying.

Knows nothing of models or caches: logits in, token out; ids in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

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
    """Chooses one token after the other for one line.

    The repetition penalty counts what was generated and not the prompt: an NPC must be free to say
    the name of the item it hands over.

    Args:
        sampling: the parameters.
        suppressed: ids that are never chosen (markers, control tokens).
    """

    def __init__(self, sampling: Sampling, suppressed: Sequence[int]) -> None:
        self._greedy = sampling.temperature == 0.0
        # Drawn on the CPU whatever the device, so that a seed gives the same line everywhere.
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._processors = LogitsProcessorList()
        if suppressed:
            self._processors.append(SuppressTokensLogitsProcessor(list(suppressed)))
        if sampling.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits_V: torch.Tensor, generated: Sequence[int]) -> int:
        """Return the next token for logits of shape (V,) after the ids in `generated`.

        Raises:
            ValueError: the logits are not finite, so no choice among them means anything.
        """
        if not bool(torch.isfinite(logits_V).all()):
            raise ValueError("the model gave logits that are not finite")
        history_1T = torch.tensor([list(generated)], dtype=torch.long)
        logits_1V = logits_V.float().cpu().unsqueeze(0)
        scores_1V = self._processors(
            cast(torch.LongTensor, history_1T), cast(torch.FloatTensor, logits_1V)
        )
        if self._greedy:
            return int(scores_1V.argmax(dim=-1))
        probabilities_1V = torch.softmax(scores_1V, dim=-1)
        return int(torch.multinomial(probabilities_1V, 1, generator=self._generator))


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
