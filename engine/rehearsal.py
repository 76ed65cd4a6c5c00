"""Trying an NPC out as it is being written: turns on a stage of one's own that is thrown away.

    NPC as written ─→ its own registry, knowledge and session ─→ the same turn as everybody's

Nothing that is served changes, and nothing is saved: visitors of a Space may write and try as well as
the owner. A stage is named by an id that only its caller knows; few are kept, the least recently used
goes first. Knows nothing of files or Gradio.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import InvalidRequest, ModelError
from engine.knowledge import Knowledge, KnowledgeError
from engine.npc import NPC, NPCRegistry
from engine.pipeline import DialogueEngine
from engine.play import Parts
from engine.schema import TurnRequest, TurnResult
from engine.sessions import SessionStore

logger = logging.getLogger(__name__)

_PLAYER = "rehearsal"
MOST_STAGES = 16


@dataclass
class _Stage:
    """One caller's stage: what its NPC knows and remembers."""

    folder: Path
    sessions: SessionStore
    knowledge: Knowledge
    lock: threading.Lock = field(default_factory=threading.Lock)
    npc: NPC | None = None
    closed: bool = False

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.knowledge.close()
            self.sessions.close()
            shutil.rmtree(self.folder, ignore_errors=True)


class Rehearsals:
    """The stages that are in use.

    Args:
        parts: gives model and embedder as they serve now.
        max_text_chars: longest utterance, in characters.
        history_turns: exchanges that a session remembers.
        most: stages kept at once.
    """

    def __init__(
        self,
        parts: Callable[[], Parts],
        *,
        max_text_chars: int,
        history_turns: int,
        most: int = MOST_STAGES,
    ) -> None:
        self._parts = parts
        self._limits = {"max_text_chars": max_text_chars, "history_turns": history_turns}
        self._most = most
        self._stages: OrderedDict[str, _Stage] = OrderedDict()
        self._lock = threading.Lock()

    def play(self, npc: NPC, request: TurnRequest, stage_id: str = "") -> tuple[str, TurnResult]:
        """Play a turn with `npc` as it is now written; return the stage's id and the result.

        Args:
            npc: what its file would say; between two turns of a stage it may change.
            request: the turn; its player and NPC ids are not looked at.
            stage_id: of an earlier turn, to go on from there; "": begin anew.

        Raises:
            InvalidRequest: the stage is not there any more.
            EngineError: as a turn.
        """
        parts = self._parts()
        if stage_id:
            return stage_id, self._played(self._found(stage_id), parts, npc, request)
        stage_id, stage = uuid.uuid4().hex, self._made(parts)
        try:
            result = self._played(stage, parts, npc, request)
        except BaseException:
            stage.close()  # nobody will hear its id
            raise
        self._keep(stage_id, stage)
        return stage_id, result

    def _played(self, stage: _Stage, parts: Parts, npc: NPC, request: TurnRequest) -> TurnResult:
        with stage.lock:
            if stage.closed:
                raise _gone()
            registry = NPCRegistry({npc.id: {npc.language: npc}})
            if stage.npc != npc:
                if stage.npc is not None and stage.npc.id != npc.id:
                    raise InvalidRequest(
                        "this rehearsal is another NPC's; begin a new one", field="stage"
                    )
                try:
                    stage.knowledge.sync(registry)
                except KnowledgeError as exc:
                    raise ModelError(f"the rehearsal's knowledge cannot be read: {exc}") from exc
                stage.npc = npc
            own = replace(parts, registry=registry, knowledge=stage.knowledge)
            engine = DialogueEngine(own, stage.sessions, **self._limits)
            played = request.model_copy(update={"player_id": _PLAYER, "npc_id": npc.id})
            return engine.ask(played)

    def close(self) -> None:
        """Throw all stages away."""
        with self._lock:
            stages, self._stages = list(self._stages.values()), OrderedDict()
        for stage in stages:
            stage.close()

    def _found(self, stage_id: str) -> _Stage:
        with self._lock:
            stage = self._stages.get(stage_id)
            if stage is None:
                raise _gone()
            self._stages.move_to_end(stage_id)
            return stage

    def _made(self, parts: Parts) -> _Stage:
        folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        return _Stage(
            folder,
            SessionStore(f"sqlite:///{folder / 'session.sqlite3'}"),
            Knowledge(folder / "knowledge", parts.embedder),
        )

    def _keep(self, stage_id: str, stage: _Stage) -> None:
        with self._lock:
            self._stages[stage_id] = stage
            late = [self._stages.popitem(last=False)[1]] if len(self._stages) > self._most else []
        for one in late:
            one.close()


def _gone() -> InvalidRequest:
    return InvalidRequest(
        "this rehearsal is not kept any more; begin a new one (leave `stage` empty)", field="stage"
    )
