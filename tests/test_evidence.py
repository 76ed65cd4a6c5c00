"""What the state says of what is said: rules, facts, and what is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.evidence import gather_evidence, warm_evidence
from engine.gate import check_flags
from engine.npc import NPC, NPCRegistry, parse_npc
from engine.schema import SessionState
from engine.state import initial_state
from engine.text import fold
from heads.evidence import Evidence

FALLBACK = {"fallback": [{"text": "Speak up."}]}

NPC_FILE = {
    "schema_version": 1,
    "id": "miller",
    "language": "en",
    "persona": {"name": "Bram", "backstory": "Bram keeps the mill."},
    "defaults": {"quest_stage": "open"},
    "stages": {
        "any": FALLBACK,
        "open": {
            "description": "The wheel stands.",
            "flags": {
                "give_item": {
                    "when": {"items": ["oak_axle"], "actions": ["oiled_gears"]},
                    "value": "flour_sack",
                    "text": "Bram hands over flour.",
                },
                "give_hint": {"value": "ford", "text": "Bram tells of the ford."},
            },
        },
        "closed": {
            "description": "The wheel turns.",
            "flags": {
                "npc_action": {
                    "when": {"game_state": {"wheel_turning": True}},
                    "text": "Bram dances.",
                }
            },
        },
    },
}


class Words:
    """An encoder whose cosine is the share of common words; it notes what it was asked."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in fold(text).replace(".", "").split():
                row[self.places.setdefault(word, len(self.places))] = 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def npc() -> NPC:
    return parse_npc(NPC_FILE, path="miller.json")


def gathered(npc: NPC, utterance: str, **state: Any) -> Evidence:
    full: SessionState = initial_state(npc).model_copy(update=state)
    encoder = Words()
    verdicts = check_flags(npc, full.quest_stage, full, utterance, encoder)
    return gather_evidence(npc, full, utterance, verdicts, encoder)


def test_each_flag_of_the_stage_bears_its_facts_and_its_nearness(npc: NPC) -> None:
    found = gathered(npc, "Bram hands over flour", items=("oak_axle",), actions=("oiled_gears",))
    assert set(found.flags) == {"give_item", "give_hint"}
    give, hint = found.flags["give_item"], found.flags["give_hint"]
    assert (give.facts, hint.facts) == (True, None)
    assert give.rule == pytest.approx(1.0)
    assert give.value == pytest.approx(1 / np.sqrt(8))  # of "flour sack"
    assert hint.rule < give.rule


def test_what_is_named_counts_as_there_or_missing_by_the_state(npc: NPC) -> None:
    said = "here is the oak axle"
    missing = gathered(npc, said).named
    assert (missing.said_absent, missing.said_present) == (1.0, 0.0)
    assert missing.near_absent == pytest.approx(2 / np.sqrt(10))
    there = gathered(npc, said, items=(" Oak-Axle ",)).named
    assert (there.said_absent, there.said_present) == (0.0, 1.0)
    assert there.near_present == pytest.approx(missing.near_absent)


@pytest.mark.parametrize(
    ("value", "field"), [(True, "said_present"), (False, "said_absent"), (1, "said_absent")]
)
def test_facts_of_other_stages_can_be_named_too(npc: NPC, value: Any, field: str) -> None:
    named = gathered(npc, "The wheel turns again", game_state={"Wheel Turning": value}).named
    assert getattr(named, field) == 1.0


def test_forms_of_a_word_are_one_word_and_common_words_name_nothing(npc: NPC) -> None:
    assert gathered(npc, "I oil the gear").named.said_absent == 1.0
    assert gathered(npc, "the of and my").named.said_absent == 0.0


def test_an_npc_without_conditions_or_values_gives_evidence_all_the_same(npc: NPC) -> None:
    bare = {
        **NPC_FILE,
        "stages": {
            "any": FALLBACK,
            "open": {"flags": {"npc_action": {"text": "Bram dances."}}},
        },
    }
    found = gathered(parse_npc(bare, path="miller.json"), "Bram dances")
    one = found.flags["npc_action"]
    assert one.rule == one.value == pytest.approx(1.0)
    assert found.named == Evidence().named


def test_a_warm_encoder_has_read_all_that_a_turn_asks_but_the_utterance(npc: NPC) -> None:
    encoder = Words()
    warm_evidence(NPCRegistry({"miller": {"en": npc}}), encoder)
    warmed = set(encoder.asked)
    state = initial_state(npc)
    verdicts = check_flags(npc, "open", state, "Hello", encoder)
    encoder.asked.clear()
    gather_evidence(npc, state, "Hello", verdicts, encoder)
    assert set(encoder.asked) - warmed == {"Hello"}
    assert len(warmed) == len({fold(text) for text in warmed})
