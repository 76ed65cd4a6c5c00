"""Plays scenes and holds them against what was expected; makes a scene of what was played.

Every scene has a player and a session store of its own, which are thrown away. Knows nothing of files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError
from engine.pipeline import DialogueEngine
from engine.play import Parts
from engine.scenes.schema import Between, Expectation, Scene, SceneFile, SceneTurn
from engine.schema import Context, GenParams, TurnRequest, TurnResult, round3
from engine.sessions import SessionStore

# Decisions do not hang on the line; a short one keeps a run of many scenes quick.
SHORT = GenParams(temperature=0.0, max_new_tokens=24, seed=7)
_SPARE = 0.03

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of one scene; no failures: it passed."""

    npc_id: str
    name: str
    failures: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name among all scenes."""
        return f"{self.npc_id}: {self.name}"

    @property
    def passed(self) -> bool:
        """Whether all went as expected."""
        return not self.failures


@dataclass(frozen=True)
class Run:
    """What came of all scenes, in their order."""

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every scene passed."""
        return all(one.passed for one in self.outcomes)


def run_scenes(parts: Parts, files: Sequence[SceneFile], progress: Progress | None = None) -> Run:
    """Play all scenes of `files`.

    Args:
        parts: NPCs, model, knowledge and embedder, as turns use them.
        files: the scenes.
        progress: told how many are done, of how many, and which comes next.
    """
    todo = [(file.npc_id, scene) for file in files for scene in file.scenes]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="scenes-") as folder:
        sessions = SessionStore(f"sqlite:///{Path(folder) / 'scenes.sqlite3'}")
        try:
            engine = DialogueEngine(parts, sessions)
            for number, (npc_id, scene) in enumerate(todo):
                if progress:
                    progress(number, len(todo), f"{npc_id}: {scene.name}")
                failures = tuple(_play(engine, npc_id, scene, f"scene-{number}"))
                outcomes.append(Outcome(npc_id, scene.name, failures))
        finally:
            sessions.close()
    if progress:
        progress(len(todo), len(todo), "")
    return Run(tuple(outcomes))


def _play(engine: DialogueEngine, npc_id: str, scene: Scene, player_id: str) -> Iterable[str]:
    for number, turn in enumerate(scene.turns, start=1):
        request = TurnRequest(
            text=turn.say,
            npc_id=npc_id,
            player_id=player_id,
            # The state is set up once; from then on the session carries it.
            context=scene.start if number == 1 else Context(language=scene.start.language),
            gen_params=scene.gen_params or SHORT,
        )
        place = f"turn {number}: " if len(scene.turns) > 1 else ""
        try:
            result = engine.ask(request)
        except EngineError as exc:
            yield f"{place}{exc.message}"
            return
        for failure in failures_of(turn.expect, result):
            yield place + failure


def failures_of(expect: Expectation, result: TurnResult) -> Iterable[str]:
    """Yield what is not as expected, a plain sentence each."""
    meta = result.meta
    if meta.route == "degraded" and expect.route is None:
        # No flag fires then, so whatever must not fire would pass untested.
        yield f"the turn could not be decided: {meta.route_reason}"
    for flag in expect.fire:
        detail = meta.flags_detail.get(flag)
        if not result.flags.get(flag):
            reason = detail.reason if detail else "the bundle knows no such flag"
            yield f"{flag} did not fire: {reason}"
    for flag in expect.not_fire:
        if result.flags.get(flag):
            yield f"{flag} fired (probability {meta.flags_detail[flag].probability:g})"
    given = {action.flag: action.value for action in meta.actions}
    for flag, value in expect.actions.items():
        if given.get(flag) != value:
            yield f"{flag} gave {given.get(flag, 'nothing')}, not {value}"
    for name in ("trust", "relationship"):
        bounds, moved = getattr(expect, name), getattr(result.delta, name)
        if bounds and not bounds.min <= moved <= bounds.max:
            yield f"{name} moved by {moved:+g}, not {bounds.min:+g} to {bounds.max:+g}"
    if expect.route and meta.route != expect.route:
        yield f"took the route {meta.route}, not {expect.route}: {meta.route_reason or ''}".rstrip(
            ": "
        )
    if expect.next_quest_stage and meta.next_quest_stage != expect.next_quest_stage:
        yield f"the stage is then {meta.next_quest_stage}, not {expect.next_quest_stage}"
    said = result.text.casefold()
    for word in expect.absent_words:
        if word.casefold() in said:
            yield f"the line says {word!r}: {result.text!r}"
    for word in expect.present_words:
        if word.casefold() not in said:
            yield f"the line does not say {word!r}: {result.text!r}"


def record(name: str, state: Context, turns: Sequence[tuple[str, TurnResult]]) -> Scene:
    """Return a scene that demands what was seen.

    Flags that fired must, those that could have and did not must not; deltas may differ by a little.

    Args:
        name: of the scene.
        state: what the first turn started from.
        turns: the player's words with what came of them.
    """
    return Scene(
        name=name,
        state=state,
        turns=tuple(SceneTurn(say=words, expect=_seen(result)) for words, result in turns),
    )


def _seen(result: TurnResult) -> Expectation:
    details = result.meta.flags_detail.items()
    return Expectation(
        fire=tuple(flag for flag, one in details if one.fired),
        not_fire=tuple(flag for flag, one in details if one.permitted and not one.fired),
        actions={one.flag: one.value for one in result.meta.actions if one.value},
        trust=_around(result.delta.trust),
        relationship=_around(result.delta.relationship),
        route=result.meta.route,
        next_quest_stage=result.meta.next_quest_stage,
    )


def _around(value: float) -> Between:
    return Between(min=round3(max(-1.0, value - _SPARE)), max=round3(min(1.0, value + _SPARE)))
