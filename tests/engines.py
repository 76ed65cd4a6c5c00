"""Engines and services for tests: a tiny real model, hashed words, real Chroma, real SQLite.

A `Workshop` builds them below one folder and closes whatever it built. Nothing of this is ever served.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.host import ModelHost
from engine.knowledge import Knowledge
from engine.loader import find_bundle
from engine.model import LanguageModel
from engine.npc import NPC, NPCRegistry, build_registry, parse_npc, read_npc
from engine.pipeline import DialogueEngine
from engine.play import Parts
from engine.schema import FLAGS, TurnRequest, TurnResult, parse_request
from engine.service import EngineService
from engine.sessions import SessionStore
from engine.settings import Settings
from tests.fakes import (
    BASE_ID,
    FINGERPRINT,
    WordEmbedder,
    save_tiny_bundle,
    tiny_language_model,
    tiny_model,
)

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "npc_configs"
SILVIA = "mother_abandoned_factory"
KEEPER = "keeper"
FIRE = 30.0
NEVER = -30.0
ALL_FIRE = dict.fromkeys(FLAGS, FIRE)
NONE_FIRES = dict.fromkeys(FLAGS, NEVER)
# Few tokens, because a test looks at what is decided; a seed, so that the line is always the same.
SHORT: dict[str, Any] = {"max_new_tokens": 8, "seed": 7}

_KEEPER: dict[str, Any] = {
    "id": KEEPER,
    "language": "en",
    "persona": {
        "name": "Ada",
        "role": "the lighthouse keeper",
        "style": "dry",
        "backstory": "Ada has kept the light for thirty years.",
    },
    "defaults": {
        "quest_stage": "closed",
        "location": "rock",
        "npc_mood": "calm",
        "trust": 0.1,
        "relationship": 0.05,
    },
    "lore": ["The light went out once."],
    "stages": {
        "closed": {
            "description": "The door is shut.",
            "flags": {
                "give_item": {
                    "when": {
                        "items": ["lantern"],
                        "actions": ["lit_lamp"],
                        "game_state": {"tide_low": True},
                        "min_trust": 0.2,
                        "said": {"keywords": ["key"]},
                    },
                    "value": "brass_key",
                    "text": "Ada hands over the brass key.",
                },
                "quest_stage_change": {
                    "when": {"said": {"keywords": ["open the door"]}},
                    "value": "open",
                    "text": "Ada opens the door.",
                },
            },
            "turns": [
                {"player": "Give me the key.", "npc": "Take the key.", "flags": ["give_item"]},
                {"player": "Give me the key.", "npc": "Not for words alone."},
                {"player": "What about the storm?", "npc": "It passes.", "emotion": "calm"},
            ],
        },
        "open": {
            "description": "The door stands open.",
            "flags": {
                "give_hint": {
                    "value": "cellar",
                    "text": "Ada points at the cellar.",
                    "once": False,
                }
            },
        },
        "any": {
            "delta_policy": {
                "trust": {"min": -0.6, "max": 0.6, "per_turn_cap": 0.15},
                "relationship": {"min": -0.6, "max": 0.6, "per_turn_cap": 0.25},
                "repeat_factor": 0.25,
            },
            "fallback": [
                {"text": "The wind took your words.", "about": "she did not hear the words"},
                {"text": "Ask the sea.", "mood": "bitter", "about": "a question she cannot answer"},
            ],
        },
    },
    "forbidden": [
        {
            "name": "insult",
            "keywords": ["old crow"],
            "sentences": ["nobody needs a useless keeper"],
            "reaction": {
                "text": "Get off my rock.",
                "action": "shuts_door",
                "emotion": "angry",
                "delta": {"trust": -0.2, "relationship": -0.1},
            },
        }
    ],
}

_KOREAN_LINES: dict[str, Any] = {
    "closed": [
        {"player": "열쇠를 주세요.", "npc": "열쇠를 가져가요.", "flags": ["give_item"]},
        {"player": "열쇠를 주세요.", "npc": "말로는 안 돼요."},
        {"player": "폭풍은 어때요?", "npc": "지나가요."},
    ]
}


def keeper_data(npc_id: str = KEEPER, **changes: Any) -> dict[str, Any]:
    """Return the file of a small English NPC; `changes` replace top-level keys."""
    return {**copy.deepcopy(_KEEPER), "id": npc_id, **changes}


def korean_keeper_data(npc_id: str = KEEPER) -> dict[str, Any]:
    """Return the same NPC in Korean: other words, the same stages, flags and conditions."""
    data = keeper_data(npc_id, language="ko")
    for stage, turns in _KOREAN_LINES.items():
        data["stages"][stage]["turns"] = turns
    data["stages"]["closed"]["flags"]["give_item"]["when"]["said"] = {"keywords": ["열쇠"]}
    data["stages"]["closed"]["flags"]["give_item"]["text"] = "에이다가 놋쇠 열쇠를 건넨다."
    data["stages"]["any"]["fallback"] = [{"text": "바람 소리에 못 들었어요."}]
    return data


def keeper(**changes: Any) -> NPC:
    """Return the small NPC, checked as a file would be."""
    return parse_npc(keeper_data(**changes), path="keeper.json")


def registry_of(*files: Mapping[str, Any]) -> NPCRegistry:
    """Return a registry of NPC files given as data."""
    npcs = {f"{data['id']}.{data['language']}.json": data for data in files}
    return build_registry({name: parse_npc(data, path=name) for name, data in npcs.items()})


def shipped(npc_id: str = SILVIA) -> NPCRegistry:
    """Return a registry of one shipped NPC in all its languages."""
    paths = [SHIPPED / f"{npc_id}.json", *sorted(SHIPPED.glob(f"{npc_id}.*.json"))]
    return build_registry({path.name: read_npc(path) for path in dict.fromkeys(paths)})


def steady(
    *,
    trust: float = 0.05,
    relationship: float = 0.04,
    shifts: dict[str, float] | None = None,
    languages: tuple[str, ...] = ("en",),
) -> LanguageModel:
    """Return a tiny model whose delta head always reads the same, so that a test can count on it."""
    model = tiny_language_model(shifts=shifts or NONE_FIRES, languages=languages)
    head = model.bundle.heads.delta
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([math.atanh(trust), math.atanh(relationship)]))
    return model


def request(text: str, npc_id: str = KEEPER, player_id: str = "p1", **more: Any) -> TurnRequest:
    """Return a request for a short line; `more` as the API takes it."""
    more["gen_params"] = {**SHORT, **(more.get("gen_params") or {})}
    return parse_request(text=text, npc_id=npc_id, player_id=player_id, **more)


def ask(engine: DialogueEngine, text: str, *args: str, **more: Any) -> TurnResult:
    """Play one turn."""
    return engine.ask(request(text, *args, **more))


def write_npcs(folder: Path, *files: Mapping[str, Any]) -> Path:
    """Write NPC files into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in files:
        suffix = "" if data["language"] == "en" else f".{data['language']}"
        path = folder / f"{data['id']}{suffix}.json"
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return folder


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Return settings that keep everything below `folder`, whatever the environment says."""
    given: dict[str, Any] = {
        "data_dir": folder / "data",
        "npc_dir": folder / "npcs",
        "model_cache": folder / "cache",
        "base_model": "",
        "bundle": "",
        "embedder": "",
        "database_url": "",
        "device": "cpu",
        "quantize": "none",
        "max_prompt_tokens": 4000,
        "max_text_chars": 1000,
        "max_text_tokens": 1000,
        "history_turns": 6,
        "queue_limit": 64,
        "cpu_threads": 0,
    }
    return Settings(_env_file=None, **{**given, **changes})


def load_tiny(settings: Settings, progress: Callable[[float, str], None]) -> LanguageModel:
    """Load the settings' bundle strictly, for the tiny base instead of a real one."""
    bundle = find_bundle(settings.bundle)
    progress(0.5, "half way")
    model, tokenizer = tiny_model("qwen2")
    return LanguageModel(
        model,
        tokenizer,
        bundle,
        base_id=BASE_ID,
        base_fingerprint=FINGERPRINT,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_text_tokens=settings.max_text_tokens,
    )


class Workshop:
    """Builds engines and services below one folder and closes them at the end of a `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def engine(
        self,
        registry: NPCRegistry | None = None,
        model: LanguageModel | None = None,
        *,
        name: str = "engine",
        queue_limit: int = 64,
        busy_timeout_s: float = 10.0,
        **engine_args: Any,
    ) -> DialogueEngine:
        """Return an engine whose data lie in the folder `name`; by default for the small NPC."""
        folder = self.folder / name
        registry = registry or registry_of(keeper_data(), korean_keeper_data())
        embedder = WordEmbedder()
        knowledge = Knowledge(folder / "chroma", embedder)
        self._open.callback(knowledge.close)
        knowledge.sync(registry)
        url = f"sqlite:///{folder / 'sessions.sqlite3'}"
        sessions = SessionStore(url, busy_timeout_s=busy_timeout_s)
        self._open.callback(sessions.close)
        host = ModelHost(model or steady(), queue_limit)
        return DialogueEngine(Parts(registry, host, knowledge, embedder), sessions, **engine_args)

    def bundle(self, name: str = "bundle", **bundle_args: Any) -> Path:
        """Write a sound bundle for the tiny base and return its folder."""
        save_tiny_bundle(self.folder / name, **bundle_args)
        return self.folder / name

    def service(self, *, load: bool = True, **changes: Any) -> EngineService:
        """Return a service on the small NPC and a sound bundle, unless `changes` say otherwise.

        `changes` are settings, but for `model_loader` and `embedder_loader`.
        """
        loaders = {
            "model_loader": changes.pop("model_loader", load_tiny),
            "embedder_loader": changes.pop("embedder_loader", lambda _settings: WordEmbedder()),
        }
        if "npc_dir" not in changes and not (self.folder / "npcs").exists():
            write_npcs(self.folder / "npcs", keeper_data(), korean_keeper_data())
        if "bundle" not in changes:
            changes["bundle"] = str(
                self.folder / "bundle" if (self.folder / "bundle").exists() else self.bundle()
            )
        service = EngineService(settings_for(self.folder, **changes), **loaders)
        self._open.callback(service.close)
        if load:
            service.load()
        return service


def without_times(result: TurnResult) -> TurnResult:
    """Return `result` without what differs between two runs of the same turn: its timings."""
    timings = type(result.meta.timings_ms)()
    return result.model_copy(
        update={"meta": result.meta.model_copy(update={"timings_ms": timings})}
    )


def swap_parts(engine: DialogueEngine, **parts: Any) -> None:
    """Replace some of an engine's parts, as a reload does."""
    engine.parts = replace(engine.parts, **parts)
