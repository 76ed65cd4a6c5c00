"""NPC files: their schema, reading a folder of them, and looking an NPC up.

A file is one NPC in one language: `blacksmith.json`, and `blacksmith.ko.json` for its Korean self.
The variants share one id, one player state and the same conditions; they differ in what is said.
Knows nothing of prompts, models, sessions or the vector store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from engine.errors import NPCFileError, UnknownNPC
from engine.schema import (
    ANY_STAGE,
    FLAGS,
    MAX_NAME,
    Delta,
    GameState,
    Language,
    Name,
    Names,
    Probability,
    Unit,
    Value,
    first_complaint,
    number,
    whole_number,
)

logger = logging.getLogger(__name__)

Line = Annotated[str, Field(min_length=1, max_length=600)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Lines = Annotated[tuple[Line, ...], Field(max_length=200)]
NPCId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]


class Persona(Value):
    """Who the NPC is. `role` is a noun phrase ("the village blacksmith")."""

    name: Name
    role: Annotated[str, Field(max_length=200)] = ""
    style: Annotated[str, Field(max_length=200)] = "neutral"
    traits: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    backstory: Text
    rules: Lines = ()
    greeting: Annotated[str, Field(max_length=600)] = ""


class Defaults(Value):
    """The state of a player whom the NPC has never met."""

    quest_stage: Name
    location: Name = "unknown"
    npc_mood: Name = "neutral"
    player_reputation: Name = "unknown"
    trust: Unit = 0.0
    relationship: Unit = 0.0


class Said(Value):
    """What the talk must come to: any keyword, or any meaning at or above `similarity` (cosine)."""

    keywords: Lines = ()
    meanings: Lines = ()
    similarity: Probability = 0.4

    @model_validator(mode="after")
    def _not_empty(self) -> Said:
        if not self.keywords and not self.meanings:
            raise ValueError("needs keywords or meanings; leave `said` out if anything may be said")
        return self


class Conditions(Value):
    """What must hold before a flag may fire. All of it must; an empty set always holds.

    `min_trust` and `min_relationship` are met at the bound. `game_state` values must be equal.
    """

    items: Names = ()
    actions: Names = ()
    game_state: GameState = Field(default_factory=dict)
    min_trust: Unit | None = None
    min_relationship: Unit | None = None
    said: Said | None = None


class FlagRule(Value):
    """One flag at one stage: when it may fire, and what it then does in the game.

    `value` is the machine's word for it ("gold_necklace"; for quest_stage_change the next stage),
    `text` the sentence for people. `threshold` overrides the bundle's. `once` keeps it from
    firing a second time for a player. `even_in_bad_faith` is for what the NPC does because it is lied
    to or threatened: nothing else fires then. `names` are what an item is called in speech (else the
    words of `value`, and the last of them), and `closing` is what the NPC adds to a line that hands it
    over and says none of them (else `engine.naming` finds a sentence).
    """

    when: Conditions = Conditions()
    value: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    text: Text
    examples_positive: Lines = ()
    examples_negative: Lines = ()
    threshold: Probability | None = None
    once: bool = True
    even_in_bad_faith: bool = False
    names: Lines = ()
    closing: Text | None = None


class Range(Value):
    """How far one standing may move: in one turn, and within one stage in all."""

    min: Annotated[float, BeforeValidator(number), Field(ge=-2.0, le=0.0)] = -0.5
    max: Annotated[float, BeforeValidator(number), Field(ge=0.0, le=2.0)] = 0.5
    per_turn_cap: Annotated[float, BeforeValidator(number), Field(ge=0.0, le=1.0)] = 0.15


class DeltaPolicy(Value):
    """Bounds of the deltas; a gain shrinks by `repeat_factor` each time it is talked for again."""

    trust: Range = Range()
    relationship: Range = Range()
    repeat_factor: Probability = 0.25


class ExampleTurn(Value):
    """An authored exchange: spoken as it stands where the model cannot write the language."""

    player: Line
    npc: Line
    delta: Delta = Delta()
    flags: Annotated[tuple[str, ...], Field(max_length=len(FLAGS))] = ()
    emotion: Name | None = None

    @field_validator("flags")
    @classmethod
    def _known(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        return _known_flags(flags)


class FallbackLine(Value):
    """A line for a turn that the model does not answer. `about` says in words what it suits."""

    text: Line
    mood: Name | None = None
    about: Annotated[str, Field(max_length=200)] = ""


class Stage(Value):
    """What holds at one quest stage. The stage "any" stands behind every other."""

    description: Annotated[str, Field(max_length=4000)] = ""
    flags: dict[str, FlagRule] = Field(default_factory=dict)
    delta_policy: DeltaPolicy | None = None
    turns: Annotated[tuple[ExampleTurn, ...], Field(max_length=200)] = ()
    fallback: Annotated[tuple[FallbackLine, ...], Field(max_length=50)] = ()

    @field_validator("flags")
    @classmethod
    def _known(cls, flags: dict[str, FlagRule]) -> dict[str, FlagRule]:
        _known_flags(flags)
        return flags


class ForbiddenReaction(Value):
    """The NPC's authored answer to a forbidden utterance; `delta` is applied as it stands."""

    text: Line
    action: Name | None = None
    emotion: Name | None = None
    delta: Delta = Delta()


class Forbidden(Value):
    """A kind of utterance that never reaches the model: by keyword, or by a sentence's meaning."""

    name: Name
    keywords: Lines = ()
    sentences: Lines = ()
    similarity: Probability = 0.72
    reaction: ForbiddenReaction


class Temper(Value):
    """How readily an NPC gains trust and affection, and how readily it loses them; 1 is even.

    What the model reads of a turn is multiplied by it, before the bounds of the stage. What an author
    wrote into a turn or a reaction stays as it is.
    """

    gain: Annotated[float, BeforeValidator(number), Field(ge=0.5, le=1.5)] = 1.0
    loss: Annotated[float, BeforeValidator(number), Field(ge=0.5, le=1.5)] = 1.0

    def bent(self, value: float) -> float:
        """Return a delta of an even temper as it is for this one."""
        return value * (self.gain if value > 0 else self.loss)


class NPC(Value):
    """One NPC in one language, as its file says it.

    `extensions` is for other programs' data: kept and given back, never read.
    """

    schema_version: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=1)] = 1
    id: NPCId
    language: Language = "en"
    persona: Persona
    defaults: Defaults
    temper: Temper = Temper()
    lore: Lines = ()
    stages: Annotated[dict[Name, Stage], Field(min_length=1, max_length=50)]
    forbidden: Annotated[tuple[Forbidden, ...], Field(max_length=50)] = ()
    extensions: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> NPC:
        if self.defaults.quest_stage not in self.quest_stages:
            raise ValueError(
                f"defaults.quest_stage: {self.defaults.quest_stage!r} is not one of the stages "
                f"{', '.join(self.quest_stages)}"
            )
        if not any(stage.fallback for stage in self.stages.values()):
            raise ValueError("stages: at least one stage (best: 'any') needs a fallback line")
        for name, stage in self.stages.items():
            rule = stage.flags.get("quest_stage_change")
            if rule and rule.value not in self.quest_stages:
                raise ValueError(
                    f"stages.{name}.flags.quest_stage_change.value: must be one of the stages "
                    f"{', '.join(self.quest_stages)}"
                )
        return self

    @property
    def quest_stages(self) -> tuple[str, ...]:
        """The stages a player can be in, in the file's order (so without "any")."""
        return tuple(name for name in self.stages if name != ANY_STAGE)

    def stage(self, name: str) -> Stage:
        """Return the stage `name`, completed by the stage "any".

        Flags of the stage hide those of "any"; turns and fallback lines are added together; the
        description and the delta policy are the stage's own where it has one.
        """
        behind = self.stages.get(ANY_STAGE, Stage())
        own = self.stages.get(name, Stage())
        return Stage(
            description=own.description or behind.description,
            flags={**behind.flags, **own.flags},
            delta_policy=own.delta_policy or behind.delta_policy or DeltaPolicy(),
            turns=own.turns + behind.turns,
            fallback=own.fallback + behind.fallback,
        )

    def events(self, stage: str, flags: Iterable[str]) -> dict[str, str]:
        """Return what each of `flags` would do at `stage`, in the project's order of flags."""
        rules, wanted = self.stage(stage).flags, set(flags)
        return {flag: rules[flag].text for flag in FLAGS if flag in wanted and flag in rules}

    def rule_stage(self, stage: str, flag: str) -> str:
        """Return the stage that holds the rule in force at `stage`: that one, or "any"."""
        own = self.stages.get(stage)
        return stage if own and flag in own.flags else ANY_STAGE

    def rule_key(self, stage: str, flag: str) -> str:
        """Return "stage:flag" of the rule in force at `stage`."""
        return f"{self.rule_stage(stage, flag)}:{flag}"


def _known_flags(flags: Any) -> Any:
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]!r}; the flags are {', '.join(FLAGS)}")
    return flags


def parse_npc(data: Mapping[str, Any], *, path: str) -> NPC:
    """Check `data` against the schema.

    Raises:
        NPCFileError: naming `path` and the field.
    """
    try:
        return NPC.model_validate(data)
    except ValidationError as exc:
        place, message = first_complaint(exc)
        error = exc.errors(include_url=False)[0]
        if error["type"] == "value_error" and not error["loc"]:  # `_consistent` names its own field
            place, _, message = message.partition(": ")
        raise NPCFileError(f"{path}: {place}: {message}", path=path, field=place) from exc


def read_npc(path: Path) -> NPC:
    """Read one NPC file; its name must be `<id>.json` or `<id>.<language>.json`.

    Raises:
        NPCFileError: unreadable, not JSON, not the schema, or misnamed.
    """
    name = path.name
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_duplicate_keys)
    except json.JSONDecodeError as exc:
        raise NPCFileError(
            f"{name}: not valid JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}", path=name
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise NPCFileError(f"{name}: cannot be read: {exc}", path=name) from exc
    if not isinstance(data, dict):
        raise NPCFileError(f"{name}: must hold one JSON object", path=name)
    npc = parse_npc(data, path=name)
    if name not in (f"{npc.id}.json", f"{npc.id}.{npc.language}.json"):
        raise NPCFileError(
            f"{name}: id: the file of {npc.id!r} must be called {npc.id}.json "
            f"or {npc.id}.{npc.language}.json",
            path=name,
            field="id",
        )
    return npc


def no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON's pairs; for `object_pairs_hook`, which would drop the first of two.

    Raises:
        ValueError: a key stands twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


@dataclass(frozen=True)
class NPCRegistry:
    """All NPCs of a folder: id → language → NPC. The first language of an NPC is its main one."""

    by_id: Mapping[str, Mapping[str, NPC]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all NPCs; changes exactly when some NPC does."""
        digest = hashlib.sha256()
        for npc in self.all():
            digest.update(npc.model_dump_json().encode())
        return digest.hexdigest()

    def all(self) -> list[NPC]:
        """Return every NPC in every language, by id and then language."""
        return [npc for _, variants in sorted(self.by_id.items()) for npc in variants.values()]

    def languages(self, npc_id: str) -> tuple[str, ...]:
        """Return the languages of an NPC, its main one first."""
        return tuple(self._variants(npc_id))

    def get(self, npc_id: str, language: str | None = None) -> NPC:
        """Return the NPC in `language` where its file exists, else in its main language.

        Raises:
            UnknownNPC: no file carries this id.
        """
        variants = self._variants(npc_id)
        return variants.get(language or "") or next(iter(variants.values()))

    def _variants(self, npc_id: str) -> Mapping[str, NPC]:
        try:
            return self.by_id[npc_id]
        except KeyError:
            known = ", ".join(sorted(self.by_id)) or "none"
            raise UnknownNPC(
                f"there is no NPC {npc_id!r}; known: {known}", field="npc_id"
            ) from None


def build_registry(npcs: Mapping[str, NPC]) -> NPCRegistry:
    """Group NPCs (file name → NPC) by id and check that the variants of one agree.

    Raises:
        NPCFileError: two files for one id and language, or variants that differ in more than words.
    """
    grouped: dict[str, dict[str, NPC]] = {}
    for name, npc in sorted(npcs.items(), key=lambda pair: _main_first(pair[0])):
        variants = grouped.setdefault(npc.id, {})
        if npc.language in variants:
            raise NPCFileError(
                f"{name}: language: {npc.id!r} has a second file in {npc.language!r}",
                path=name,
                field="language",
            )
        if variants:
            _check_agrees(next(iter(variants.values())), npc, name)
        variants[npc.language] = npc
    return NPCRegistry(grouped)


def _main_first(name: str) -> tuple[int, str]:
    """Sort key of file names: "<id>.json" comes before "<id>.en.json", as the main language."""
    return name.count("."), name


def _check_agrees(main: NPC, other: NPC, name: str) -> None:
    """Raise unless `other` has temper, stages, flags, conditions, values and `once` of `main`."""
    if main.temper != other.temper:
        raise NPCFileError(
            f"{name}: temper: must be gain {main.temper.gain:g} and loss {main.temper.loss:g}, as in "
            "the main language",
            path=name,
            field="temper",
        )
    if main.quest_stages != other.quest_stages:
        raise NPCFileError(
            f"{name}: stages: must be {', '.join(main.quest_stages)}, as in the main language",
            path=name,
            field="stages",
        )
    for stage in main.quest_stages:
        ours, theirs = main.stage(stage).flags, other.stage(stage).flags
        place = f"stages.{stage}.flags"
        if set(ours) != set(theirs):
            raise NPCFileError(
                f"{name}: {place}: must be {', '.join(sorted(ours))}, as in the main language",
                path=name,
                field=place,
            )
        for flag, rule in ours.items():
            for part in ("items", "actions", "game_state", "min_trust", "min_relationship"):
                if getattr(rule.when, part) != getattr(theirs[flag].when, part):
                    where = f"{place}.{flag}.when.{part}"
                    raise NPCFileError(
                        f"{name}: {where}: must be as in the main language", path=name, field=where
                    )
            for part in ("value", "once"):
                if getattr(rule, part) != getattr(theirs[flag], part):
                    where = f"{place}.{flag}.{part}"
                    raise NPCFileError(
                        f"{name}: {where}: must be as in the main language", path=name, field=where
                    )


def load_folder(folder: Path) -> NPCRegistry:
    """Read every NPC file of `folder`, all or nothing.

    Raises:
        NPCFileError: the first file at fault, or an empty folder.
    """
    registry, faults = load_folder_leniently(folder)
    if faults:
        raise faults[0]
    if not len(registry):
        raise NPCFileError(f"{folder}: holds no NPC files (*.json)", path=str(folder))
    return registry


def load_folder_leniently(
    folder: Path, last_good: NPCRegistry | None = None
) -> tuple[NPCRegistry, list[NPCFileError]]:
    """Read what can be read, so that one bad file does not take the others down.

    A file at fault leaves its version from `last_good` in place, if there is one and it still
    agrees with the other languages of the NPC.

    Returns:
        The registry, and one error per file at fault.
    """
    npcs: dict[str, NPC] = {}
    faults: list[NPCFileError] = []
    for path in sorted(folder.glob("*.json"), key=lambda path: _main_first(path.name)):
        try:
            npcs = _with(npcs, path.name, read_npc(path))
        except NPCFileError as fault:
            logger.error("NPC file not used: %s", fault)
            faults.append(fault)
            kept = _last_good(path, last_good)
            if kept:
                with contextlib.suppress(NPCFileError):
                    npcs = _with(npcs, path.name, kept)
    return build_registry(npcs), faults


def _with(npcs: Mapping[str, NPC], name: str, npc: NPC) -> dict[str, NPC]:
    """Return `npcs` with one more file; NPCFileError where it does not go with the others."""
    more = {**npcs, name: npc}
    build_registry(more)
    return more


def _last_good(path: Path, registry: NPCRegistry | None) -> NPC | None:
    npc_id, _, rest = path.name.partition(".")
    variants = registry.by_id.get(npc_id, {}) if registry else {}
    language = rest.removesuffix("json").rstrip(".")
    if language:
        return variants.get(language)
    main = next(iter(variants.values()), None)
    # Its main language may come from a file of its own, which then speaks for itself.
    elsewhere = main and path.with_name(f"{npc_id}.{main.language}.json").exists()
    return None if elsewhere else main
