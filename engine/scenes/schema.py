"""Scene files: `npc_configs/scenes/<npc_id>.json`, checked strictly.

    {"schema_version": 1, "npc_id": "…", "scenes": [
      {"name": "…", "state": {…as `context`…}, "turns": [
        {"say": "…", "expect": {"fire": […], "not_fire": […], "actions": {flag: value},
                                "trust": {"min": …, "max": …}, "relationship": …, "route": "main",
                                "next_quest_stage": "…", "absent_words": […], "present_words": […]}}]}]}

`trust` and `relationship` bound the turn's delta. Knows nothing of how a scene is played.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from engine.errors import EngineError
from engine.npc import NPCId
from engine.schema import (
    FLAGS,
    Context,
    GenParams,
    Name,
    Route,
    Unit,
    Value,
    first_complaint,
    whole_number,
)

Words = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=50)
]


class SceneFileError(EngineError, ValueError):
    """A scene file that cannot be used; the message names file and field."""

    code = "bad_scene_file"


class Between(Value):
    """Bounds of a delta, both of them included."""

    min: Unit = -1.0
    max: Unit = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Between:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self


def _known(flags: tuple[str, ...]) -> tuple[str, ...]:
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"unknown flag {flag!r}; the flags are {', '.join(FLAGS)}")
    return flags


class Expectation(Value):
    """What must come of a turn; what is left out may be anything."""

    fire: tuple[str, ...] = ()
    not_fire: tuple[str, ...] = ()
    actions: dict[str, str] = Field(default_factory=dict)
    trust: Between | None = None
    relationship: Between | None = None
    route: Route | None = None
    next_quest_stage: Name | None = None
    absent_words: Words = ()
    present_words: Words = ()

    @field_validator("fire", "not_fire")
    @classmethod
    def _flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        return _known(flags)

    @field_validator("actions")
    @classmethod
    def _actions(cls, actions: dict[str, str]) -> dict[str, str]:
        _known(tuple(actions))
        return actions

    @model_validator(mode="after")
    def _sound(self) -> Expectation:
        both = set(self.fire) & set(self.not_fire)
        if both:
            raise ValueError(f"{sorted(both)[0]} cannot both fire and not fire")
        return self


class SceneTurn(Value):
    """One utterance and what must come of it."""

    say: Annotated[str, Field(min_length=1, max_length=1000)]
    expect: Expectation


class Scene(Value):
    """A state and the turns that are played in it, one after the other."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    state: Context = Context()
    turns: Annotated[tuple[SceneTurn, ...], Field(min_length=1, max_length=20)]
    gen_params: GenParams | None = None


class SceneFile(Value):
    """The scenes of one NPC."""

    schema_version: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=1)] = 1
    npc_id: NPCId
    scenes: Annotated[tuple[Scene, ...], Field(min_length=1, max_length=500)]

    @model_validator(mode="after")
    def _named_once(self) -> SceneFile:
        seen: set[str] = set()
        for scene in self.scenes:
            if scene.name in seen:
                raise ValueError(f"scenes: two are called {scene.name!r}")
            seen.add(scene.name)
        return self


def read_scenes(paths: Iterable[Path]) -> list[SceneFile]:
    """Read scene files.

    Raises:
        SceneFileError: the first one at fault.
    """
    return [_read(path) for path in paths]


def _read(path: Path) -> SceneFile:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise SceneFileError(f"{path.name}: cannot be read as JSON: {exc}") from exc
    try:
        return SceneFile.model_validate(data)
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise SceneFileError(f"{path.name}: {field}: {message}", field=field) from exc


def save_scene(folder: Path, npc_id: str, scene: Scene) -> Path:
    """Add a scene to an NPC's file, or replace the one of its name; the file is written whole.

    Raises:
        SceneFileError: the id is none, or the file that is there cannot be read.
    """
    try:
        fresh = SceneFile(npc_id=npc_id, scenes=(scene,))
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise SceneFileError(f"{field}: {message}", field=field) from exc
    path = folder / f"{fresh.npc_id}.json"
    if path.is_file():
        kept = tuple(one for one in _read(path).scenes if one.name != scene.name)
        fresh = SceneFile(npc_id=npc_id, scenes=(*kept, scene))
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, prefix=".scene-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            data = fresh.model_dump(mode="json", exclude_defaults=True)
            file.write(
                json.dumps({"schema_version": 1, **data}, ensure_ascii=False, indent=2) + "\n"
            )
        Path(part).replace(path)
        path.chmod(0o644)
    finally:
        Path(part).unlink(missing_ok=True)
    return path
