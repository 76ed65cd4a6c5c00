"""The values of a turn: what a game sends, what it gets back, and what a session remembers.

Every model refuses unknown fields, so a misspelt key is an error and not a silent default.
Knows nothing of NPC files, models or storage.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)

from engine.errors import InvalidRequest

FLAGS: tuple[str, ...] = (
    "give_item",
    "give_hint",
    "npc_main_story",
    "quest_stage_change",
    "npc_action",
    "change_player_state",
    "change_game_state",
    "unlock_hidden_path",
)
"""The flags that the project knows, in the order that a bundle for all of them uses."""

ANY_STAGE = "any"
MAX_NAME = 64
MAX_NAMES = 64
MAX_HISTORY = 40
MAX_LINE = 2000
_INT_LIMIT = 2**63

Language = Literal["en", "ko"]
Route = Literal["main", "forbidden", "invalid", "degraded"]
LineSource = Literal["generated", "completed", "authored"]


def number(value: Any) -> Any:
    """Refuse what JSON keeps apart from a number but Python or pydantic would take for one.

    True would count as 1.0, and "0.5" would pass here and fail in a game that reads it back.
    """
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, (str, bytes, bytearray)):
        raise ValueError("must be a number, not text")
    return value


def whole_number(value: Any) -> Any:
    """Take 7.0 for 7: JavaScript and some engines send every number as a float."""
    number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _scalar(value: Any) -> Any:
    """Refuse what is no plain value, here and in one sentence: a union would complain thrice."""
    if isinstance(value, str) and len(value) <= MAX_NAME and _without_surrogates(value) == value:
        return value
    if isinstance(value, (bool, int, float)) and abs(value) < _INT_LIMIT:
        return value
    raise ValueError(f"must be a number, true, false or text of at most {MAX_NAME} characters")


def _no_file_key(state: dict[str, Any]) -> dict[str, Any]:
    """Refuse the key "path", which would make `/session` unreadable for Gradio's Python client."""
    if "path" in state:
        raise ValueError('the name "path" is reserved (Gradio takes it for a file); use another')
    return state


def _without_surrogates(value: Any) -> Any:
    """Drop half characters: clients that cut an emoji in two send them, and nothing stores them."""
    return value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Names = Annotated[tuple[Name, ...], Field(max_length=MAX_NAMES)]
Unit = Annotated[float, BeforeValidator(number), Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Probability = Annotated[float, BeforeValidator(number), Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Scalar = Annotated[StrictBool | int | float | str, BeforeValidator(_scalar)]
Spoken = Annotated[str, BeforeValidator(_without_surrogates)]
GameState = Annotated[dict[Name, Scalar], Field(max_length=MAX_NAMES), AfterValidator(_no_file_key)]


class Value(BaseModel):
    """Base of all values here: frozen, and closed against unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HistoryTurn(Value):
    """One earlier exchange."""

    player: Annotated[Spoken, Field(max_length=MAX_LINE)]
    npc: Annotated[Spoken, Field(max_length=MAX_LINE)]


class Context(Value):
    """What the game says about its state. Whatever is left out comes from the session.

    `trust` and `relationship` run from -1 to 1. `language` picks the NPC file where an NPC has more
    than one; without it the language of the utterance decides.
    """

    quest_stage: Name | None = None
    location: Name | None = None
    npc_mood: Name | None = None
    player_reputation: Name | None = None
    style: Name | None = None
    trust: Unit | None = None
    relationship: Unit | None = None
    items: Names | None = None
    actions: Names | None = None
    game_state: GameState | None = None
    dialogue_history: Annotated[tuple[HistoryTurn, ...], Field(max_length=MAX_HISTORY)] | None = (
        None
    )
    language: Language | None = None


class GenParams(Value):
    """How the line is sampled. `temperature` 0 is greedy; `max_new_tokens` counts tokens."""

    temperature: Annotated[float, BeforeValidator(number), Field(ge=0.0, le=2.0)] = 0.3
    top_p: Annotated[float, BeforeValidator(number), Field(gt=0.0, le=1.0)] = 0.9
    max_new_tokens: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=256)] = 60
    repetition_penalty: Annotated[float, BeforeValidator(number), Field(ge=1.0, le=2.0)] = 1.1
    seed: Annotated[int, BeforeValidator(whole_number), Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.model_fields
        return {key: value for key, value in data.items() if value is not None or key not in known}


class TurnRequest(Value):
    """One utterance of one player to one NPC."""

    text: Spoken
    npc_id: Name
    player_id: Annotated[str, Field(min_length=1, max_length=128)]
    context: Context = Context()
    gen_params: GenParams = GenParams()
    turn_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    expected_version: (
        Annotated[int, BeforeValidator(whole_number), Field(ge=0, lt=_INT_LIMIT)] | None
    ) = None


class Delta(Value):
    """A change, or (in a session) a standing, of trust and relationship, each from -1 to 1."""

    trust: Unit = 0.0
    relationship: Unit = 0.0


class Action(Value):
    """What a fired flag means in this game. `effect_id` is the same on every retry of the turn."""

    flag: str
    value: str | None
    text: str
    source: Literal["exact", "any_stage", "nearest", "none"]
    effect_id: str


class FlagDetail(Value):
    """Why a flag fired or did not. `probability` is calibrated; None where no model was asked."""

    probability: Probability | None
    threshold: Probability | None
    permitted: bool
    fired: bool
    reason: str | None


class ModelInfo(Value):
    """Which weights answered."""

    base: str
    bundle: str


class Timings(Value):
    """Milliseconds since the turn began, but for `prefill` and `generate`, which are durations."""

    prefill: float = 0.0
    state: float = 0.0
    generate: float = 0.0
    total: float = 0.0


class Reaction(Value):
    """What the NPC does besides speaking, on an authored path: a game may play an animation."""

    trigger: str | None = None
    action: str | None = None
    emotion: str | None = None


class Meta(Value):
    """Everything about a turn but its line, delta and flags.

    The way it took is called `route`: Gradio's Python client takes every object with a text under
    "path" for a file, and would try to download it. `acts` says how the player seems to treat the NPC
    ("comfort", "lie", …), in probabilities: what the delta is a mean of. `line` says where the line
    comes from: "completed" is a generated one with an authored sentence that names what is handed over.
    """

    npc_id: str
    player_id: str
    turn_id: str
    version: int
    route: Route
    route_reason: str | None = None
    language: Language
    line: LineSource
    quest_stage: str
    next_quest_stage: str
    state_before: Delta
    state: Delta
    actions: tuple[Action, ...] = ()
    flags_detail: dict[str, FlagDetail]
    reaction: Reaction | None = None
    acts: dict[str, Probability] = {}
    model: ModelInfo
    seed: int
    timings_ms: Timings


class TurnResult(Value):
    """The answer to a turn."""

    text: str
    delta: Delta
    flags: dict[str, bool]
    meta: Meta


class SessionState(Value):
    """What the engine remembers of one player with one NPC.

    `fired` lists "stage:flag" of everything that has happened, `spent` the sum of the deltas
    granted in the present stage, `said` the last utterances in folded form (so that talk cannot
    be farmed).
    """

    quest_stage: Name
    location: Name
    npc_mood: Name
    player_reputation: Name
    style: Name
    standing: Delta = Delta()
    items: Names = ()
    actions: Names = ()
    game_state: GameState = Field(default_factory=dict)
    history: Annotated[tuple[HistoryTurn, ...], Field(max_length=MAX_HISTORY)] = ()
    fired: Annotated[tuple[str, ...], Field(max_length=4096)] = ()
    spent: Delta = Delta()
    said: Annotated[tuple[str, ...], Field(max_length=MAX_HISTORY)] = ()


def parse_request(**fields: Any) -> TurnRequest:
    """Check a call's raw arguments and return the request they make.

    None stands for "not given" in `context` and `gen_params`.

    Raises:
        InvalidRequest: with the field and what is wrong with it, in plain words.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    try:
        return TurnRequest.model_validate(given)
    except ValidationError as exc:
        raise invalid_from(exc) from exc


def invalid_from(exc: ValidationError) -> InvalidRequest:
    """Translate pydantic's first complaint into an `InvalidRequest` with a dotted field."""
    field, message = first_complaint(exc)
    return InvalidRequest(f"{field}: {message}", field=field)


def first_complaint(exc: ValidationError) -> tuple[str, str]:
    """Return the dotted field and a plain message of the first error in `exc`."""
    error = exc.errors(include_url=False)[0]
    # A key may hold half a character, which the answer could not carry.
    parts = (str(part).encode("utf-8", "replace").decode() for part in error["loc"])
    field = ".".join(parts) or "request"
    if error["type"] == "extra_forbidden":
        return field, "unknown field; check the spelling"
    if error["type"] == "missing":
        return field, "is required"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    # Python refuses to print an integer of thousands of digits.
    long = isinstance(given, int) and abs(given) >= _INT_LIMIT
    if isinstance(given, (str, int, float, bool)) and not long and len(str(given)) <= 40:
        message += f" (got {given!r})"
    return field, message[:1].lower() + message[1:]


def round3(value: float) -> float:
    """Round to the three digits that deltas and standings carry; never returns -0.0."""
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {value}")
    return round(value, 3) + 0.0
