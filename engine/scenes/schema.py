"""Scene files: `npc_configs/scenes/<npc_id>.json`, checked strictly.

    {"schema_version": 1, "npc_id": "…", "scenes": [
      {"name": "…", "lang": "ko", "state": {…as `context`…}, "turns": [
        {"say": "…", "expect": {"fire": […], "not_fire": […], "actions": {flag: value},
                                "trust": {"min": …, "max": …}, "relationship": …, "route": "main",
                                "next_quest_stage": "…", "absent_words": […], "present_words": […]}}]}]}

`trust` and `relationship` bound the turn's delta; `lang` (or `state.language`) picks the NPC's file.
Knows nothing of how a scene is played.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from engine.errors import EngineError
from engine.npc import NPCId, no_duplicate_keys
from engine.schema import (
    FLAGS,
    Context,
    GenParams,
    Language,
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
# Adding to a file reads it first: two at once would lose a scene.
_SAVING = threading.Lock()


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
    lang: Language | None = None
    state: Context = Context()
    turns: Annotated[tuple[SceneTurn, ...], Field(min_length=1, max_length=20)]
    gen_params: GenParams | None = None

    @model_validator(mode="after")
    def _one_language(self) -> Scene:
        if self.lang and self.state.language not in (None, self.lang):
            raise ValueError(f"lang is {self.lang}, but state.language is {self.state.language}")
        return self

    @property
    def start(self) -> Context:
        """What the first turn starts from, language and all."""
        return self.state.model_copy(update={"language": self.lang or self.state.language})


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
        SceneFileError: the first one at fault, with file, scene and field.
    """
    files: list[SceneFile] = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        file = _read(path)
        for scene in file.scenes:
            # Runs are held against each other by these two names.
            other = seen.setdefault((file.npc_id, scene.name), str(path))
            if other != str(path):
                raise SceneFileError(
                    f"{path.name}: scene {scene.name!r}: {file.npc_id} has one of this name in "
                    f"{other} too; give it another",
                    field="scenes",
                )
        files.append(file)
    return files


def _read(path: Path) -> SceneFile:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_duplicate_keys)
    except (OSError, ValueError, RecursionError) as exc:
        raise SceneFileError(f"{path.name}: cannot be read as JSON: {exc}") from exc
    try:
        return SceneFile.model_validate(data)
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise SceneFileError(
            f"{path.name}: {_scene_of(field, data)}{field}: {message}", field=field
        ) from exc


def _scene_of(field: str, data: Any) -> str:
    """Return "scene 'its name': " for a field inside a scene that has one; nobody counts scenes."""
    parts = field.split(".")
    if parts[0] != "scenes" or len(parts) < 2 or not parts[1].isdecimal():
        return ""
    scene = data["scenes"][int(parts[1])]
    name = scene.get("name") if isinstance(scene, dict) else None
    return f"scene {name!r}: " if isinstance(name, str) and name else ""


def save_scene(folder: Path, npc_id: str, scene: Scene) -> Path:
    """Add a scene to an NPC's file, or replace the one of its name; the file is written whole.

    Raises:
        SceneFileError: the id is none, the file that is there cannot be read or is another NPC's, or
            it cannot be written.
    """
    path = folder / f"{_file_of(npc_id, (scene,)).npc_id}.json"
    with _SAVING:
        kept: tuple[Scene, ...] = ()
        if path.is_file():
            there = _read(path)
            if there.npc_id != npc_id:
                raise SceneFileError(
                    f"{path.name}: npc_id: the file holds scenes of {there.npc_id!r}; rename it first",
                    field="npc_id",
                )
            kept = tuple(one for one in there.scenes if one.name != scene.name)
        data = _file_of(npc_id, (*kept, scene)).model_dump(mode="json", exclude_defaults=True)
        text = json.dumps({"schema_version": 1, **data}, ensure_ascii=False, indent=2) + "\n"
        try:
            write_whole(path, text)
        except OSError as exc:
            raise SceneFileError(f"{path.name}: cannot be written: {exc}") from exc
    return path


def _file_of(npc_id: str, scenes: tuple[Scene, ...]) -> SceneFile:
    try:
        return SceneFile(npc_id=npc_id, scenes=scenes)
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise SceneFileError(f"{field}: {message}", field=field) from exc


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made where it is missing.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".scene-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)
