"""What a set of heads is made of: its flags, its input, and where in the network it reads.

Knows nothing of tokens, prompts or what a flag means.
"""

from __future__ import annotations

from dataclasses import dataclass

FINAL_NORM = -1
"""The value of `HeadSpec.layer` that stands for the output of the final norm."""

DELTA_NAMES: tuple[str, ...] = ("trust", "relationship")


@dataclass(frozen=True)
class HeadSpec:
    """Shape and place of the heads.

    Args:
        flags: names in the order of the flag head's outputs.
        hidden_size: width of the hidden state.
        layer: decoder layer whose output is read, counted from 1; `FINAL_NORM` for the last.
        meaning_size: width of what is heard of the utterance, which the heads read beside the hidden
            state; 0: they read the hidden state alone.
        acts: names of the ways of treating an NPC that the delta is a mean of; none: the delta head
            gives the delta itself.
        claims: whether the acts hang on what is claimed and on whether the game's state bears it out
            (`heads.evidence`).

    Raises:
        ValueError: no flags, a name twice, claims without acts, or a size or layer that cannot be.
    """

    flags: tuple[str, ...]
    hidden_size: int
    layer: int = FINAL_NORM
    meaning_size: int = 0
    acts: tuple[str, ...] = ()
    claims: bool = False

    def __post_init__(self) -> None:
        if not self.flags or len(set(self.flags)) != len(self.flags):
            raise ValueError("flags must be a non-empty list of different names")
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be positive, not {self.hidden_size}")
        if self.layer != FINAL_NORM and self.layer < 1:
            raise ValueError(f"layer counts from 1 (or {FINAL_NORM}: final norm), not {self.layer}")
        if self.meaning_size < 0:
            raise ValueError(f"meaning_size must not be negative, not {self.meaning_size}")
        if len(set(self.acts)) != len(self.acts):
            raise ValueError("acts must be different names")
        if self.claims and not self.acts:
            raise ValueError("claims move the acts, and there are none")

    @property
    def width(self) -> int:
        """How many numbers the heads read: hidden state and what was heard."""
        return self.hidden_size + self.meaning_size
