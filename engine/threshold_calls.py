"""The public calls on a flag's threshold: what another one would change, and writing it down.

What a threshold costs is known of the bundle's own test part (`metrics.test.curves`); which scenes it
turns over is found by playing an NPC's scenes under both. Playing and saving are the owner's to do.
Knows nothing of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from engine.authoring import NPCFolder
from engine.errors import InvalidRequest
from engine.npc import NPC, NPCRegistry, parse_npc
from engine.owner import Owner
from engine.scenes import read_scenes, run_scenes
from engine.scenes.report import as_json
from engine.scenes.runner import Progress
from engine.service import EngineService

Json = dict[str, Any]
Guard = Callable[[Callable[[], Json]], Json]


class ThresholdCalls:
    """The calls on the NPC files of one service.

    Args:
        service: whose NPCs and bundle they are about.
        guarded: turns an engine error into its payload.
        owner: lets the owner pass.
    """

    def __init__(self, service: EngineService, guarded: Guard, owner: Owner) -> None:
        self._service = service
        self._guarded = guarded
        self._owner = owner

    def threshold(
        self, npc_id: str, quest_stage: str, flag: str, language: str | None = None
    ) -> dict[str, Any]:
        """Return a flag's threshold at a stage: the bundle's, the NPC file's, and what others cost."""

        def read() -> Json:
            npc = self._npc(npc_id, quest_stage, flag, language)
            info = self._service.engine.parts.host.model.bundle.info
            own = npc.stage(quest_stage).flags[flag].threshold
            curves = info.metrics.get("test", {}).get("curves", {})
            return {
                "quest_stage": quest_stage,
                "flag": flag,
                "threshold": own if own is not None else info.thresholds.get(flag),
                "bundle": info.thresholds.get(flag),
                "override": own,
                "curve": curves.get("flags", {}).get(flag, []),
                "reliability": curves.get("reliability", []),
            }

        return self._guarded(read)

    def threshold_try(
        self,
        npc_id: str,
        quest_stage: str,
        flag: str,
        threshold: float,
        language: str | None = None,
        token: str = "",
    ) -> dict[str, Any]:
        """Play an NPC's scenes under its thresholds and under another one: which flip. The owner's."""
        return self.tried(npc_id, quest_stage, flag, threshold, language, token)

    def tried(
        self,
        npc_id: str,
        quest_stage: str,
        flag: str,
        threshold: float,
        language: str | None,
        token: str,
        progress: Progress | None = None,
    ) -> Json:
        """Do as `threshold_try`, and tell `progress` how far it has come."""

        def run() -> Json:
            self._owner.check(token)
            npc = self._npc(npc_id, quest_stage, flag, language)
            folder = self._service.settings.npc_dir / "scenes"
            files = [
                file for file in read_scenes(sorted(folder.glob("*.json"))) if file.npc_id == npc.id
            ]
            if not files:
                raise InvalidRequest("this NPC has no scenes; record one", field="npc_id")
            changed = self._with_threshold(npc, quest_stage, flag, _share(threshold))
            parts = self._service.engine.parts
            count = sum(len(file.scenes) for file in files)

            def second(done: int, _count: int, what: str) -> None:
                if progress:
                    progress(count + done, 2 * count, what)

            def first(done: int, _count: int, what: str) -> None:
                if progress:
                    progress(done, 2 * count, what)

            before = as_json(run_scenes(parts, files, first))
            registry = _replaced(parts.registry, parse_npc(changed, path=npc.id))
            after = as_json(run_scenes(replace(parts, registry=registry), files, second))
            return {**after, "flips": _flips(before["scenes"], after["scenes"])}

        return self._guarded(run)

    def threshold_save(
        self,
        npc_id: str,
        quest_stage: str,
        flag: str,
        threshold: float | None = None,
        language: str | None = None,
        token: str = "",
    ) -> dict[str, Any]:
        """Write a flag's threshold into the NPC file; none: the bundle's holds again. The owner's."""

        def run() -> Json:
            self._owner.check(token)
            npc = self._npc(npc_id, quest_stage, flag, language)
            value = None if threshold is None else _share(threshold)
            data = self._with_threshold(npc, quest_stage, flag, value)
            path = NPCFolder(self._service.settings.npc_dir).save(data)
            return {"saved": path.name, "threshold": value, **self._service.reload()}

        return self._guarded(run)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """Return every call by its API name."""
        named = (self.threshold, self.threshold_try, self.threshold_save)
        return {call.__name__: call for call in named}

    def _npc(self, npc_id: str, quest_stage: str, flag: str, language: str | None) -> NPC:
        npc = self._service.registry.get(npc_id, language or None)
        if quest_stage not in npc.quest_stages:
            raise InvalidRequest(
                f"quest_stage: must be one of {', '.join(npc.quest_stages)}", field="quest_stage"
            )
        flags = npc.stage(quest_stage).flags
        if flag not in flags:
            raise InvalidRequest(
                f"flag: {npc.id} has {', '.join(flags) or 'no flags'} at {quest_stage}",
                field="flag",
            )
        return npc

    def _with_threshold(self, npc: NPC, stage: str, flag: str, value: float | None) -> Json:
        """Return the NPC's file with the rule that is in force at `stage` changed."""
        data = NPCFolder(self._service.settings.npc_dir).read(npc.id, npc.language)
        rule = data["stages"][npc.rule_stage(stage, flag)]["flags"][flag]
        rule.pop("threshold", None)
        if value is not None:
            rule["threshold"] = value
        return data


def _share(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise InvalidRequest("threshold: must be a number from 0 to 1", field="threshold")
    return round(float(value), 3)


def _replaced(registry: NPCRegistry, npc: NPC) -> NPCRegistry:
    variants = {**registry.by_id[npc.id], npc.language: npc}
    return NPCRegistry({**registry.by_id, npc.id: variants})


def _flips(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Json]:
    """Return the scenes that pass under one threshold and fail under the other."""
    return [
        {"scene": name, "passes": not failures, "reason": "; ".join(failures or before[name])}
        for name, failures in after.items()
        if bool(failures) != bool(before[name])
    ]
