"""Training rows: their schema, and reading them from JSONL.

A row is one turn of one NPC: the state and the utterance that go in, the reply, the delta and the
flags that should come out. Knows nothing of prompts or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from engine.schema import (
    FLAGS,
    Delta,
    GameState,
    Language,
    Name,
    Names,
    Unit,
    Value,
    first_complaint,
)
from training.rubric import ACTS

DATA_DIR = Path(__file__).parent / "data"

# Texts that an embedder should remember here: all rows are asked for several times.
ROWS_REMEMBERED = 32_768


class RowError(ValueError):
    """A row that cannot be used; the message names file, line and field."""


class Tags(Value):
    """Where the player stands with the NPC before the utterance."""

    quest_stage: Name
    trust: Unit
    relationship: Unit
    npc_mood: Name = "neutral"
    player_reputation: Name = "unknown"
    location: Name | None = None


class Message(Value):
    """One earlier message; players and NPCs alternate, the player first."""

    role: Literal["player", "npc"]
    text: Annotated[str, Field(min_length=1, max_length=2000)]


class PlayerState(Value):
    """What the game knows of the player."""

    items: Names = ()
    actions: Names = ()
    game_state: GameState = Field(default_factory=dict)


class Row(Value):
    """One labelled turn.

    `asks` (flags that the utterance asks for or brings about) and `act` (how it treats the NPC) are
    the writer's judgement; `flag` (flags that fire) and `delta` follow from them by rule, see
    `training.oracle`. `group` ties rows that vary one case. `attack` marks an attempt to talk a
    reward out of the NPC. `part` "train" marks rows that came after the division was fixed: they are
    fitted on and never measured with, so that figures of two bundles are of the same rows.
    """

    npc_id: Name
    lang: Language
    tags: Tags
    context: tuple[Message, ...] = ()
    player_state: PlayerState = PlayerState()
    player_utterance: Annotated[str, Field(min_length=1, max_length=1000)]
    response: Annotated[str, Field(min_length=1, max_length=600)]
    delta: Delta
    flag: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    act: str = "neutral"
    group: str | None = None
    attack: bool = False
    part: Literal["train"] | None = None

    @field_validator("act")
    @classmethod
    def _judged(cls, act: str) -> str:
        if act not in ACTS:
            raise ValueError(f"unknown act {act!r}; the acts are {', '.join(ACTS)}")
        return act

    @field_validator("flag", "asks")
    @classmethod
    def _known(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [flag for flag in flags if flag not in FLAGS]
        if unknown:
            raise ValueError(f"unknown flag {unknown[0]!r}; the flags are {', '.join(FLAGS)}")
        return flags

    @field_validator("context")
    @classmethod
    def _alternates(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        roles = [message.role for message in messages]
        if roles != ["player", "npc"] * (len(roles) // 2):
            raise ValueError("must alternate player, npc and end with the npc")
        return messages

    @property
    def exchanges(self) -> tuple[tuple[str, str], ...]:
        """The earlier talk as (player, npc) pairs."""
        texts = [message.text for message in self.context]
        return tuple(zip(texts[::2], texts[1::2], strict=True))


def read_rows(paths: Iterable[Path] | None = None) -> list[Row]:
    """Read rows from JSONL files; by default all of `training/data/`, in order of file name.

    Raises:
        RowError: naming file, line and field.
    """
    rows: list[Row] = []
    for path in sorted(paths) if paths is not None else sorted(DATA_DIR.glob("*.jsonl")):
        # Not splitlines(): it also breaks at U+2028 and the like, which a JSON string may hold.
        for number, line in enumerate(_read(path).split("\n"), start=1):
            if line.strip():
                rows.append(parse_row(line, where=f"{path.name}:{number}"))
    if not rows:
        raise RowError("no rows: training/data/ holds no *.jsonl file with a row in it")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RowError(f"{path.name}: cannot be read: {exc}") from exc


def parse_row(line: str, *, where: str) -> Row:
    """Read one row of JSON; `where` names it in errors.

    Raises:
        RowError: naming `where` and the field.
    """
    try:
        return Row.model_validate(json.loads(line))
    except json.JSONDecodeError as exc:
        raise RowError(f"{where}: not valid JSON: {exc.msg} (column {exc.colno})") from exc
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise RowError(f"{where}: {field}: {message}") from exc
    except (ValueError, RecursionError) as exc:
        raise RowError(f"{where}: cannot be read: {exc}") from exc
