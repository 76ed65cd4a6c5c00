"""The program's life around the engine: start in the background, status, reload.

A service is there at once and serves when its parts are ready; until then, and when a part is missing,
it says so in plain words. Knows nothing of Gradio.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.compute import in_passing
from engine.embed import Embedder, SentenceEmbedder
from engine.errors import EngineError, NotReady, NPCFileError
from engine.evidence import warm_evidence
from engine.host import Host
from engine.knowledge import Knowledge, KnowledgeError
from engine.listen import listener_of
from engine.loader import bundle_stamp, load_model
from engine.model import LanguageModel
from engine.npc import NPCRegistry, load_folder, load_folder_leniently
from engine.pipeline import DialogueEngine
from engine.play import Parts
from engine.rehearsal import Rehearsals
from engine.serving.start import make_host
from engine.sessions import SessionStore
from engine.settings import Settings
from engine.weights import resolve_embedder

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
_PACKAGES = ("gradio", "transformers", "torch", "peft", "chromadb", "sentence-transformers")

ModelLoader = Callable[[Settings, Callable[[float, str], None]], LanguageModel]
EmbedderLoader = Callable[[Settings], Embedder]


@dataclass(frozen=True)
class Progress:
    """How far starting has come: a fraction from 0 to 1, and what is being done."""

    fraction: float = 0.0
    message: str = "starting"


def load_embedder(settings: Settings) -> Embedder:
    """Load the embedder that the settings name."""
    return SentenceEmbedder(resolve_embedder(settings.embedder or None))


class EngineService:
    """Holds the engine and everything that it is made of.

    Args:
        settings: the program's settings.
        model_loader, embedder_loader: the seams where tests put small fakes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model_loader: ModelLoader = load_model,
        embedder_loader: EmbedderLoader = load_embedder,
    ) -> None:
        self.settings = settings
        self._load_model = model_loader
        self._load_embedder = embedder_loader
        self._engine: DialogueEngine | None = None
        self._embedder: Embedder | None = None
        self._knowledge: Knowledge | None = None
        self._sessions: SessionStore | None = None
        self._registry = NPCRegistry()
        self._faults: list[NPCFileError] = []
        self._reason: EngineError | None = None
        self._knowledge_reason: str | None = None
        self._bundle_stamp = ""
        self._progress = Progress()
        self._reloading = threading.Lock()
        self._started = time.time()
        self.rehearsals = Rehearsals(
            lambda: self.engine.parts,
            max_text_chars=settings.max_text_chars,
            history_turns=settings.history_turns,
        )

    def start(self) -> threading.Thread:
        """Begin to load in the background; returns the thread, for whoever wants to wait."""
        thread = threading.Thread(target=self.load, name="load-engine", daemon=True)
        thread.start()
        return thread

    def load(self) -> None:
        """Load everything; what fails is kept as the reason for not being ready."""
        with self._reloading:
            try:
                self._load()
                self._reason = None
            except EngineError as exc:
                logger.error("not ready: %s", exc)
                self._reason = exc
            except Exception as exc:  # the page must say so rather than wait for ever
                logger.exception("not ready")
                self._reason = NotReady(
                    f"starting failed unexpectedly: {type(exc).__name__}: {exc}"
                )

    def _load(self) -> None:
        settings = self.settings
        self._registry, self._faults = load_folder_leniently(settings.npc_dir, self._registry)
        if not len(self._registry):
            load_folder(settings.npc_dir)  # raises, naming what is wrong
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._sessions = self._sessions or SessionStore(settings.session_url)
        stamp = bundle_stamp(settings.bundle)
        # Beside each other: one waits for the disk and the network while the other computes.
        with ThreadPoolExecutor(1, thread_name_prefix="load-knowledge") as beside:
            embedded = beside.submit(self._load_knowledge)
            model = self._load_model(
                settings, lambda fraction, message: self._tell(0.02 + 0.9 * fraction, message)
            )
            if not embedded.done():
                self._tell(0.95, "indexing what the NPCs know")
            embedder = embedded.result()
        self._bundle_stamp = stamp
        self._engine = DialogueEngine(
            Parts(
                self._registry,
                self._host(model),
                self._knowledge,
                embedder,
                self._listener(model),
            ),
            self._sessions,
            max_text_chars=settings.max_text_chars,
            history_turns=settings.history_turns,
        )
        self._tell(1.0, "ready")

    def _load_knowledge(self) -> Embedder:
        self._embedder = self._embedder or self._load_embedder(self.settings)
        self._open_knowledge(self._embedder, self._registry)
        warm_evidence(self._registry, self._embedder)
        return self._embedder

    def _open_knowledge(self, embedder: Embedder, registry: NPCRegistry) -> None:
        if self._knowledge is not None:  # of a start that failed later on; one store a folder
            self._knowledge.close()
        self._knowledge = None
        try:
            self._knowledge = Knowledge(self.settings.data_dir / "chroma", embedder)
            report = self._knowledge.sync(registry)
            logger.info("knowledge: %s", report)
            self._knowledge_reason = None
        except KnowledgeError as exc:
            logger.error("turns will be degraded, the knowledge store failed: %s", exc)
            self._knowledge_reason = str(exc)

    def _tell(self, fraction: float, message: str) -> None:
        self._progress = Progress(fraction, message)

    @property
    def progress(self) -> Progress:
        """How far starting has come."""
        return self._progress

    @property
    def engine(self) -> DialogueEngine:
        """The engine.

        Raises:
            NotReady: still loading, or something is missing; says which.
        """
        if self._engine is not None:
            return self._engine
        if self._reason is not None:
            raise NotReady(f"not ready: {self._reason.message}", field=self._reason.field)
        done = self._progress
        raise NotReady(f"still starting ({done.fraction:.0%}): {done.message}; retry in a moment")

    @property
    def registry(self) -> NPCRegistry:
        """The NPCs in force; there before the engine is ready."""
        return self._registry

    def reload(self) -> dict[str, Any]:
        """Read NPC files and bundle again, all or nothing: on any error the old ones stay in force.

        Raises:
            NPCFileError: the first NPC file at fault, with file and field.
            NotReady: the bundle cannot be used, or starting had failed and still does.
        """
        with self._reloading:
            if self._engine is None:
                load_folder(self.settings.npc_dir)
                try:
                    in_passing(self._load)
                except EngineError as exc:
                    self._reason = exc  # what keeps it from starting now, not what did before
                    raise
                self._reason = None
                return self._reloaded(bundle=True)
            registry = load_folder(self.settings.npc_dir)
            parts, stamp = self._engine.parts, bundle_stamp(self.settings.bundle)
            host, listener = parts.host, parts.listener
            if stamp != self._bundle_stamp:
                # Whoever called us goes on to live; what computes while it loads must not.
                model, host = in_passing(self._load_anew)
                listener = self._listener(model)
            self._sync(registry)
            warm_evidence(registry, parts.sentences)
            changed = host is not parts.host
            self._engine.parts = replace(
                parts,
                registry=registry,
                host=host,
                knowledge=self._knowledge,
                listener=listener,
            )
            if changed:
                parts.host.close()  # turns that are under way there end there
            self._registry, self._faults, self._bundle_stamp = registry, [], stamp
            return self._reloaded(bundle=changed)

    def _load_anew(self) -> tuple[LanguageModel, Host]:
        model = self._load_model(self.settings, lambda _fraction, _message: None)
        return model, self._host(model)

    def _host(self, model: LanguageModel) -> Host:
        settings = self.settings
        return make_host(
            model,
            queue_limit=settings.queue_limit,
            batch=settings.batch_size,
            prefix_cache_mb=settings.prefix_cache_mb,
            weights=settings.decode_weights,
            products=settings.prompt_products,
            tuning=settings.model_cache / "tuning.json",
        )

    def _listener(self, model: LanguageModel) -> Embedder | None:
        """Return what gives the vectors that the bundle's heads were trained on."""
        wanted = model.bundle.info.embedder_id
        if not wanted:
            return None
        found = listener_of(wanted, self._embedder) if self._embedder is not None else None
        if found is not None:
            return found
        # EMBEDDER may name another one for gate and knowledge; the heads keep to theirs.
        embedded = self._load_embedder(self.settings.model_copy(update={"embedder": ""}))
        found = listener_of(wanted, embedded)
        if found is not None:
            return found
        raise NotReady(
            f"the bundle {model.bundle.info.name} reads utterances with the embedder {wanted}, and "
            f"{embedded.id} is what there is: set EMBEDDER to the one it was made with, or make a "
            "bundle with yours",
            field="EMBEDDER",
        )

    def _sync(self, registry: NPCRegistry) -> None:
        """Index the new NPC files; a store that fails costs answers their quality, not the reload."""
        if self._knowledge is None:
            if self._embedder is not None:
                self._open_knowledge(self._embedder, registry)
            return
        try:
            self._knowledge.sync(registry)
            self._knowledge_reason = None
        except KnowledgeError as exc:
            logger.error("the knowledge store failed: %s", exc)
            self._knowledge_reason = str(exc)

    def _reloaded(self, *, bundle: bool) -> dict[str, Any]:
        return {"reloaded": True, "npcs": sorted(self._registry.by_id), "bundle_changed": bundle}

    def status(self) -> dict[str, Any]:
        """Return whether turns can be served, by what, and what is wrong if not."""
        model = self._engine.parts.host.model if self._engine else None
        done = self._progress
        return {
            "ready": self._engine is not None,
            "reason": self._reason.message if self._reason else None,
            "loading": {"fraction": round(done.fraction, 3), "message": done.message},
            "base": model.base_id if model else None,
            "bundle": model.bundle.info.name if model else None,
            "bundle_commit": (model.bundle.commit or None) if model else None,
            "languages": list(model.languages) if model else [],
            "device": str(model.device) if model else None,
            "precision": model.precision if model else None,
            "load": self._engine.parts.host.load if self._engine else None,
            "npcs": len(self._registry),
            "npc_faults": [
                {"file": fault.path, "field": fault.field, "message": fault.message}
                for fault in self._faults
            ],
            "knowledge": {"ok": self._knowledge_reason is None, "reason": self._knowledge_reason},
            "uptime_s": round(time.time() - self._started, 1),
            "versions": {
                "persona-chat-engine": VERSION,
                "python": platform.python_version(),
                **{name: _package_version(name) for name in _PACKAGES},
            },
        }

    def npcs(self) -> list[dict[str, Any]]:
        """Return what a game may know of each NPC: who, where, stages, flags, languages."""
        return [
            {
                "npc_id": npc.id,
                "name": npc.persona.name,
                "role": npc.persona.role,
                "style": npc.persona.style,
                "greeting": npc.persona.greeting,
                "languages": list(self._registry.languages(npc.id)),
                "quest_stages": list(npc.quest_stages),
                "flags": {stage: sorted(npc.stage(stage).flags) for stage in npc.quest_stages},
                "defaults": npc.defaults.model_dump(mode="json"),
            }
            for npc in (self._registry.get(npc_id) for npc_id in sorted(self._registry.by_id))
        ]

    def close(self) -> None:
        """Let go of files and databases; nothing can be asked afterwards."""
        if self._engine is not None:
            # A thread that is still in the model's code when the process ends takes it down hard.
            self._engine.parts.host.close(wait_s=5.0)
        self.rehearsals.close()
        self._engine = None
        self._reason = NotReady("the engine was closed; start the program again")
        if self._knowledge is not None:
            self._knowledge.close()
        if self._sessions is not None:
            self._sessions.close()


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
