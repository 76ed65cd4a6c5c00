"""The only place that renders and encodes prompts; serving and training both use it.

    <SYS> who the NPC is  <RAG> lore, scene  <PLAYER_STATE> items, deeds  <CTX> standing, talk
    <PLAYER> utterance  <EVENTS> what the gate permits  <STATE>  |  <ACT> what is granted, and the
    tone  <NPC> the line

The events stand behind the utterance, so that a causal model reads each of them knowing what was
said: the heads at <STATE> then only gather which of them it came to.

Everything up to <STATE> is prefilled at once; the rest is known only after the heads were read.
Text is encoded segment by segment with special tokens split, and marker ids come from this template
alone: whatever people type, a prompt holds exactly one <STATE> id. Where the base is a chat model
with ChatML turns, these stand around the segments, because an untuned base speaks best in the form
that it was taught. Knows nothing of models, heads, sessions or the vector store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import PromptError
from engine.npc import NPC
from engine.schema import SessionState
from engine.text import clean

SYS, RAG, PLAYER_STATE, CTX = "<SYS>", "<RAG>", "<PLAYER_STATE>", "<CTX>"
PLAYER, EVENTS, STATE, ACT, NPC_LINE = "<PLAYER>", "<EVENTS>", "<STATE>", "<ACT>", "<NPC>"
MARKERS: tuple[str, ...] = (SYS, RAG, PLAYER_STATE, CTX, PLAYER, EVENTS, STATE, ACT, NPC_LINE)

# Lore is part of the constant prefix: the first facts of the file, whatever is said.
LORE_FACTS = 3

# Authored lines quoted in <SYS> for the NPC's voice.
VOICE_LINES = 2

# Control tokens of code corpora: in the vocabulary of some small bases, and never in dialogue.
_SPARE_TOKENS = (
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
)
_MARKER_SPLIT = re.compile("(" + "|".join(re.escape(marker) for marker in MARKERS) + ")")
# Tokenising megabytes to throw them away would hold up every other player.
_LONGEST_SEGMENT = 20_000
# Enough to tell an event by; eight long ones would crowd out the talk.
_LONGEST_EVENT = 160


@dataclass(frozen=True)
class PromptParts:
    """The text of a prompt's segments up to <STATE>, cleaned, in the order they are encoded.

    `history` holds (player, npc) pairs, oldest first; `lore` is shortened from its end; `events`
    says which flags the gate permits and what each would do.
    """

    sys: str
    lore: tuple[str, ...]
    scene: str
    player_state: str
    tags: str
    history: tuple[tuple[str, str], ...]
    utterance: str
    events: str = ""

    def marked(self) -> str:
        """Return the prompt in the markers' text form, for people to read."""
        talk = "".join(f"\nPlayer: {player}\nNPC: {npc}" for player, npc in self.history)
        return (
            f"{SYS}{self.sys}{RAG}{_rag_text(self.lore, self.scene)}"
            f"{PLAYER_STATE}{self.player_state}{CTX}{self.tags}{talk}"
            f"{PLAYER}{self.utterance}{EVENTS}{self.events}{STATE}"
        )


def with_markers_plain(parts: PromptParts) -> PromptParts:
    """Return parts to be looked at, in which a marker that somebody typed cannot be taken for one.

    Encoding needs no such thing: it splits whatever is typed.
    """

    def plain(text: str) -> str:
        for marker in MARKERS:
            text = text.replace(marker, f"‹{marker[1:-1]}›")
        return text

    return replace(
        parts,
        utterance=plain(parts.utterance),
        history=tuple((plain(player), plain(npc)) for player, npc in parts.history),
    )


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids up to and with <STATE>, shape (T,).

    `prefix_length` counts the leading ids that are the same for every player of an NPC and stage.
    `dropped_turns` and `dropped_lore` say what did not fit.
    """

    ids: tuple[int, ...]
    prefix_length: int
    dropped_turns: int = 0
    dropped_lore: int = 0


def render_parts(
    npc: NPC,
    state: SessionState,
    *,
    lore: Sequence[str],
    scene: str,
    utterance: str,
    events: Mapping[str, str] | None = None,
) -> PromptParts:
    """Turn the values of a turn into the text of its segments.

    Args:
        npc: who is spoken to.
        state: of the player with this NPC.
        lore: facts out of the knowledge store.
        scene: description of the stage, out of the knowledge store.
        utterance: what the player says.
        events: flag → what it would do, for the flags that the gate permits this turn.
    """
    persona = npc.persona
    role = f", {persona.role}" if persona.role else ""
    about = [f"You are {persona.name}{role}.", persona.backstory]
    if persona.traits:
        about.append(f"You are {', '.join(persona.traits)}.")
    about.append(f"Your style is {persona.style}.")
    about.extend(persona.rules)
    voice = _voice(npc, state.quest_stage)
    if voice:
        about.append(f"You talk like this: {voice}")
    about.append(f"Answer as {persona.name}, in one or two short sentences.")
    return PromptParts(
        sys=clean(" ".join(about)),
        lore=tuple(clean(fact) for fact in lore),
        scene=clean(scene),
        player_state=_player_state_text(state),
        tags=_tags_text(state),
        history=tuple((clean(turn.player), clean(turn.npc)) for turn in state.history),
        utterance=clean(utterance),
        events=events_text(events or {}),
    )


def events_text(events: Mapping[str, str]) -> str:
    """Say which events the state permits: "give_item: …; give_hint: …", or "none"."""
    said = [f"{flag}: {clean(text).rstrip('.;')[:_LONGEST_EVENT]}" for flag, text in events.items()]
    return "; ".join(said) or "none"


def _voice(npc: NPC, stage: str) -> str:
    """Quote authored lines that grant nothing: examples teach a small model a voice best."""
    lines = [turn.npc for turn in npc.stage(stage).turns if not turn.flags]
    return " ".join(f'"{line}"' for line in lines[:VOICE_LINES])


def _player_state_text(state: SessionState) -> str:
    world = [f"{key}={_scalar(value)}" for key, value in sorted(state.game_state.items())]
    return clean(
        f"Visitor's items: {_listed(state.items)}; deeds: {_listed(state.actions)}; "
        f"world: {_listed(world)}."
    )


def _tags_text(state: SessionState) -> str:
    standing = state.standing
    return clean(
        f"Stage {state.quest_stage}; trust {standing.trust:.2f} ({_degree(standing.trust)}), "
        f"relationship {standing.relationship:.2f} ({_degree(standing.relationship)}); "
        f"mood {state.npc_mood}; style {state.style}; reputation {state.player_reputation}; "
        f"place {state.location}."
    )


def _degree(value: float) -> str:
    """Say a standing in a word, since small models read numbers badly."""
    for bound, word in ((-0.3, "hostile"), (0.0, "wary"), (0.3, "slight"), (0.6, "some")):
        if value < bound:
            return word
    return "deep"


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _rag_text(lore: Sequence[str], scene: str) -> str:
    return " ".join([*lore, f"Scene: {scene}"] if scene else lore)


def act_text(name: str, actions: Sequence[str], trust_delta: float) -> str:
    """Say what the decision grants and in which tone `name` speaks; the line is written to it.

    Where nothing is granted only the tone is said: a small base that reads "none" talks about it.
    """
    tone = "warmly" if trust_delta >= 0.03 else "coldly" if trust_delta <= -0.03 else "calmly"
    return " ".join([*map(clean, actions), f"{clean(name)} answers {tone}:"])


@dataclass(frozen=True)
class _ChatFrame:
    """Ids of a ChatML base's turns: <|im_start|>role … <|im_end|>. Empty for other bases."""

    opener: tuple[int, ...] = ()
    closer: tuple[int, ...] = ()


class PromptEncoder:
    """Encodes prompts for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        markers: marker → token id, as the bundle says.
        max_tokens: longest prompt including what follows <STATE>.
        max_text_tokens: longest utterance.

    Raises:
        PromptError: `markers` is not one id per marker.
    """

    # Room kept for <ACT> … <NPC>, which is encoded after the decision.
    ACT_TOKENS = 96

    def __init__(
        self,
        tokenizer: Any,
        markers: Mapping[str, int],
        *,
        max_tokens: int,
        max_text_tokens: int,
    ) -> None:
        if set(markers) != set(MARKERS) or len(set(markers.values())) != len(MARKERS):
            raise PromptError(f"markers must give one id to each of {', '.join(MARKERS)}")
        self._tokenizer = tokenizer
        self._markers = dict(markers)
        self.max_tokens = max_tokens
        self._max_text_tokens = max_text_tokens
        self._never_text = frozenset(markers.values()) | control_ids(tokenizer)
        self._frame = _chat_frame(tokenizer)
        self._newline: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self._prefixes: dict[tuple[str, tuple[str, ...], str], tuple[int, ...]] = {}

    @property
    def state_id(self) -> int:
        """The id of <STATE>."""
        return self._markers[STATE]

    @property
    def end_of_line(self) -> int:
        """The id that ends an NPC's line: the chat turn's closer, else the end of the text."""
        return int(self._frame.closer[0] if self._frame.closer else self._tokenizer.eos_token_id)

    def text_ids(self, text: str) -> list[int]:
        """Encode plain text; can hold neither a marker's id nor any special token's."""
        if not text:
            return []
        # Cut twice: cleaning can turn one ligature into eighteen letters.
        cut = clean(text[:_LONGEST_SEGMENT])[:_LONGEST_SEGMENT]
        encoded = self._tokenizer(cut, add_special_tokens=False, split_special_tokens=True)
        return [token for token in encoded["input_ids"] if token not in self._never_text]

    def encode(self, parts: PromptParts) -> EncodedPrompt:
        """Encode `parts`; too long, it drops the oldest talk first and then the last lore.

        Raises:
            PromptError: the utterance is too long, or the rest does not fit even so.
        """
        tail = self._tail(parts.utterance, parts.events)
        budget = self.max_tokens - self.ACT_TOKENS - len(tail)
        lore = parts.lore
        prefix, middle = self._prefix(parts.sys, lore, parts.scene), self._middle(parts)
        while len(prefix) + len(middle) > budget and lore:
            lore = lore[:-1]
            prefix = self._prefix(parts.sys, lore, parts.scene)
        if len(prefix) + len(middle) > budget:
            raise PromptError(
                f"persona, scene and player state take {len(prefix) + len(middle)} tokens and "
                f"{budget} are left; shorten the NPC file or the lists of items and actions, "
                "or raise MAX_PROMPT_TOKENS",
                field="context",
            )
        history, dropped = self._history(parts.history, budget - len(prefix) - len(middle))
        ids = (*prefix, *middle, *history, *tail)
        if ids.count(self.state_id) != 1:
            raise PromptError("internal: a prompt must hold exactly one <STATE>")
        return EncodedPrompt(
            ids=ids,
            prefix_length=len(prefix),
            dropped_turns=dropped,
            dropped_lore=len(parts.lore) - len(lore),
        )

    def encode_act(self, text: str) -> tuple[int, ...]:
        """Encode what follows <STATE>: <ACT> `text` <NPC>, ready for the line to begin."""
        act = self.text_ids(text)[: self.ACT_TOKENS - 16]
        return (
            self._markers[ACT],
            *act,
            *self._frame.closer,
            *self._turn("assistant"),
            self._markers[NPC_LINE],
        )

    def encode_marked(self, prompt: str) -> tuple[EncodedPrompt, tuple[int, ...] | None]:
        """Encode a ready prompt in the markers' text form ("<SYS>…<PLAYER>…<STATE>…").

        Returns:
            The part up to <STATE>, and the ids after it (None where the prompt ends at <STATE>).

        Raises:
            PromptError: not exactly one <STATE>, text before the first marker, or too long.
        """
        segments = parse_marked(prompt)
        before: list[int] = []
        after: list[int] = []
        passed_state = False
        for marker, text in segments:
            if len(text) > _LONGEST_SEGMENT:
                raise PromptError(
                    f"what follows {marker} is longer than {_LONGEST_SEGMENT} characters; shorten it",
                    field="prompt",
                )
            target = after if passed_state else before
            target.extend([*self._before(marker), self._markers[marker]])
            passed_state = passed_state or marker == STATE
            (after if passed_state else before).extend(self.text_ids(text))
        if len(before) + len(after) > self.max_tokens:
            raise PromptError(
                f"the prompt is {len(before) + len(after)} tokens long; the limit is "
                f"{self.max_tokens} (MAX_PROMPT_TOKENS)",
                field="prompt",
            )
        return EncodedPrompt(ids=tuple(before), prefix_length=0), tuple(after) or None

    def _before(self, marker: str) -> list[int]:
        """Return the chat frame's ids that stand before a marker, as `encode` places them."""
        closer = list(self._frame.closer)
        if marker == SYS:
            return self._turn("system")
        if marker == PLAYER:
            return [*closer, *self._turn("user")]
        return [*closer, *self._turn("assistant")] if marker == NPC_LINE else []

    def _prefix(self, sys: str, lore: tuple[str, ...], scene: str) -> tuple[int, ...]:
        """Encode the constant part; kept, since it is the same for every turn of an NPC's stage."""
        key = (sys, lore, scene)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = (
                *self._turn("system"),
                self._markers[SYS],
                *self.text_ids(sys),
                self._markers[RAG],
                *self.text_ids(_rag_text(lore, scene)),
            )
            # Turns encode side by side, so nothing here may count on a key that stood a line ago.
            for oldest in list(self._prefixes)[:-255]:
                self._prefixes.pop(oldest, None)
            self._prefixes[key] = prefix
        return prefix

    def _middle(self, parts: PromptParts) -> list[int]:
        return [
            self._markers[PLAYER_STATE],
            *self.text_ids(parts.player_state),
            self._markers[CTX],
            *self.text_ids(parts.tags),
            *self._frame.closer,
        ]

    def _tail(self, utterance: str, events: str) -> list[int]:
        said = self.text_ids(utterance)
        if len(said) > self._max_text_tokens or len(utterance) > _LONGEST_SEGMENT:
            raise PromptError(
                f"text is longer than the limit of {self._max_text_tokens} tokens (MAX_TEXT_TOKENS); "
                "say it in fewer words",
                field="text",
            )
        return [
            *self._turn("user"),
            self._markers[PLAYER],
            *said,
            self._markers[EVENTS],
            *self.text_ids(events),
            self._markers[STATE],
        ]

    def _history(self, turns: Sequence[tuple[str, str]], room: int) -> tuple[list[int], int]:
        """Encode the newest exchanges that fit in `room`; return ids and how many were dropped."""
        blocks: list[list[int]] = []
        for player, npc in reversed(turns):
            block = [*self._said("user", player), *self._said("assistant", npc)]
            room -= len(block)
            if room < 0:
                break
            blocks.append(block)
        ids = [token for block in reversed(blocks) for token in block]
        return ids, len(turns) - len(blocks)

    def _said(self, role: str, text: str) -> list[int]:
        if not self._frame.opener:
            # The line break is encoded apart: `text_ids` would clean it away.
            speaker = "Player" if role == "user" else "NPC"
            return [*self._newline, *self.text_ids(f"{speaker}: {text}")]
        return [*self._turn(role), *self.text_ids(text), *self._frame.closer]

    def _turn(self, role: str) -> list[int]:
        """Open a chat turn. The line break is encoded as it is: `text_ids` would clean it away."""
        if not self._frame.opener:
            return []
        heading = self._tokenizer(f"{role}\n", add_special_tokens=False)["input_ids"]
        return [*self._frame.opener, *heading]


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that neither text may become nor a line may hold: all special tokens.

    Some tokenizers do not call their control tokens special (Qwen2.5: <tool_call>), so that splitting
    special tokens leaves them whole; their angle brackets tell.
    """
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | frozenset(
        token
        for token, added_token in added
        if added_token.special or re.fullmatch(r"<\S+>", added_token.content)
    )


def _chat_frame(tokenizer: Any) -> _ChatFrame:
    specials = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
    opener, closer = specials.get("<|im_start|>"), specials.get("<|im_end|>")
    if opener is None or closer is None:
        return _ChatFrame()
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return _ChatFrame(opener=(opener,), closer=(closer, *newline))


def parse_marked(prompt: str) -> list[tuple[str, str]]:
    """Split a prompt in text form into (marker, text) pairs.

    Raises:
        PromptError: not exactly one <STATE>, or text before the first marker.
    """
    head, *rest = _MARKER_SPLIT.split(prompt)
    if head.strip():
        raise PromptError("a prompt must begin with a marker such as <SYS>", field="prompt")
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    found = sum(1 for marker, _ in pairs if marker == STATE)
    if found != 1:
        raise PromptError(f"a prompt needs exactly one <STATE>, found {found}", field="prompt")
    return pairs


def choose_marker_ids(tokenizer: Any, embedding_rows: int) -> dict[str, int]:
    """Pick a token id for each marker of a base that has none yet.

    Takes rows that the tokenizer cannot reach where the base has them (Qwen2.5 pads its embedding),
    else spare control tokens, else new rows behind the vocabulary (the model is then resized).
    """
    size = len(tokenizer)
    if embedding_rows - size >= len(MARKERS):
        return {marker: size + index for index, marker in enumerate(MARKERS)}
    vocabulary = tokenizer.get_vocab()
    spare = [vocabulary[token] for token in _SPARE_TOKENS if token in vocabulary]
    if len(spare) >= len(MARKERS):
        return dict(zip(MARKERS, spare, strict=False))
    return {marker: embedding_rows + index for index, marker in enumerate(MARKERS)}
