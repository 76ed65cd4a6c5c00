"""The public calls for scenes: list them, run them, make one of what was just played.

Running takes the model's time for as many turns as there are scenes, and recording writes a file: both
are the owner's (see `engine.owner`). Knows nothing of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequest
from engine.owner import Owner
from engine.scenes import SceneFile, difference, read_scenes, record, run_scenes, save_scene
from engine.scenes.report import as_json, keep, read_last
from engine.scenes.runner import Progress
from engine.schema import Context
from engine.service import EngineService

Json = dict[str, Any]
Guard = Callable[[Callable[[], Json]], Json]


class SceneCalls:
    """The calls on the scenes beside one folder of NPC files.

    Args:
        service: whose NPCs they are.
        guarded: turns an engine error into its payload.
        owner: lets the owner pass.
    """

    def __init__(self, service: EngineService, guarded: Guard, owner: Owner) -> None:
        self._service = service
        self._guarded = guarded
        self._owner = owner

    @property
    def _folder(self) -> Path:
        return self._service.settings.npc_dir / "scenes"

    def scenes(self, npc_id: str = "") -> dict[str, Any]:
        """Return the scenes of an NPC, or of all."""
        return self._guarded(
            lambda: {
                "scenes": {
                    file.npc_id: [
                        one.model_dump(mode="json", exclude_defaults=True) for one in file.scenes
                    ]
                    for file in self._files(npc_id)
                }
            }
        )

    def scenes_run(self, npc_id: str = "", token: str = "") -> dict[str, Any]:
        """Run an NPC's scenes, or all: what failed and why, and what changed. The owner's to do."""
        return self.played(npc_id, token)

    def played(self, npc_id: str, token: str, progress: Progress | None = None) -> Json:
        """Do as `scenes_run`, and tell `progress` how far it has come."""

        def run() -> Json:
            self._owner.check(token)
            files = self._files(npc_id)
            if not files:
                raise InvalidRequest("there are no scenes here; record one", field="npc_id")
            done = run_scenes(self._service.engine.parts, files, progress)
            last = (
                self._service.settings.data_dir / f"scenes-last{'-' if npc_id else ''}{npc_id}.json"
            )
            before = read_last(last)
            keep(done, last)
            return {**as_json(done), "changes": difference(done, before) if before else []}

        return self._guarded(run)

    def scene_record(
        self, player_id: str, npc_id: str, turn_id: str = "", name: str = "", token: str = ""
    ) -> dict[str, Any]:
        """Make a scene of a player's last turn and save it. The owner's to do."""

        def run() -> Json:
            self._owner.check(token)
            engine = self._service.engine
            played = engine.transcript(player_id, npc_id)
            # What the player had and had done is known of the last turn alone.
            if not played or turn_id not in ("", played[-1].result.meta.turn_id):
                raise InvalidRequest(
                    "only the last turn can be recorded; take later ones back first",
                    field="turn_id",
                )
            turn, meta = played[-1], played[-1].result.meta
            now = engine.session(player_id, npc_id)
            state = Context(
                quest_stage=meta.quest_stage,
                trust=meta.state_before.trust,
                relationship=meta.state_before.relationship,
                items=tuple(now["items"]),
                actions=tuple(now["actions"]),
                game_state=now["game_state"],
                location=now["location"],
                npc_mood=now["npc_mood"],
                player_reputation=now["player_reputation"],
                language=meta.language,
            )
            scene = record(_named(name, turn.text), state, [(turn.text, turn.result)])
            path = save_scene(self._folder, npc_id, scene)
            told = scene.model_dump(mode="json", exclude_defaults=True)
            return {"saved": path.name, "scene": told}

        return self._guarded(run)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """Return every call by its API name."""
        named = (self.scenes, self.scenes_run, self.scene_record)
        return {call.__name__: call for call in named}

    def _files(self, npc_id: str) -> list[SceneFile]:
        if npc_id:
            self._service.registry.get(npc_id)
        files = read_scenes(sorted(self._folder.glob("*.json")))
        return [file for file in files if npc_id in ("", file.npc_id)]


def _named(name: object, words: str) -> str:
    given = name.strip() if isinstance(name, str) else ""
    return (given or " ".join(words.split()))[:120]
