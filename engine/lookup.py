"""What a designer asks of an NPC's documents: what a flag means here, what there is, what is missing.

Values in, values out: nothing is read from disk or written. Knows nothing of models, sessions or the
page.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from engine.errors import InvalidRequest
from engine.knowledge import Knowledge, documents_of
from engine.npc import NPC, parse_npc
from engine.schema import ANY_STAGE, FLAGS

Json = dict[str, Any]

_HITS = 5


def explain(knowledge: Knowledge, npc: NPC, stage: str, flag: str, said: str = "") -> Json:
    """Say what `flag` does for `npc` at `stage`, and which documents lie near the question.

    Args:
        knowledge: the store.
        npc: whose flag it is.
        stage: one of the NPC's.
        flag: one of `FLAGS`.
        said: words to look near to; empty: the flag and the stage.

    Raises:
        InvalidRequest: there is no such stage or flag.
        KnowledgeError: the store cannot answer.
    """
    if stage not in npc.quest_stages:
        raise InvalidRequest(
            f"quest_stage: {npc.id} has no stage {stage!r}; it has {', '.join(npc.quest_stages)}",
            field="quest_stage",
        )
    if flag not in FLAGS:
        raise InvalidRequest(
            f"flag: there is no flag {flag!r}; there are {', '.join(FLAGS)}", field="flag"
        )
    found = knowledge.interpret(npc, stage, [flag], said)[flag]
    hits = knowledge.near(npc, said or f"{flag} {stage}", _HITS)
    return {
        "npc_id": npc.id,
        "quest_stage": stage,
        "flag": flag,
        "value": found.value,
        "text": found.text,
        "source": found.source,
        "distance": None if found.distance is None else round(found.distance, 3),
        "hits": [
            {
                "type": hit.document.type,
                "quest_stage": hit.document.quest_stage,
                "flag": hit.document.flag_name or None,
                "value": hit.document.value or None,
                "text": hit.document.text,
                "lang": hit.document.lang,
                "distance": round(hit.distance, 3),
            }
            for hit in hits
        ],
    }


def documents(npc: NPC) -> list[Json]:
    """Return every document that the NPC's file makes, in the file's order."""
    return [
        {
            "type": one.type,
            "quest_stage": one.quest_stage,
            "flag": one.flag_name or None,
            "value": one.value or None,
            "text": one.text,
            "lang": one.lang,
        }
        for one in documents_of(npc)
    ]


def gaps(npc: NPC) -> list[Json]:
    """Return what an NPC's file leaves out, each with where to mend it.

    A flag that no stage explains can never fire; a stage without a description leaves the model
    without a scene; a flag without a value leaves the game without a word of its own to act on.
    """
    found: list[Json] = []

    def gap(kind: str, stage: str, field: str, message: str) -> None:
        found.append({"kind": kind, "quest_stage": stage, "field": field, "message": message})

    shared = npc.stages.get(ANY_STAGE)
    for stage in npc.quest_stages:
        own = npc.stages.get(stage)
        described = (own and own.description) or (shared and shared.description)
        if not described:
            gap("no_description", stage, f"stages.{stage}.description", "has no description")
        for flag, rule in npc.stage(stage).flags.items():
            if rule.value is None:
                field = f"stages.{stage}.flags.{flag}.value"
                gap("no_value", stage, field, f"{flag} gives the game no value")
    explained = {flag for stage in npc.quest_stages for flag in npc.stage(stage).flags}
    for flag in FLAGS:
        if flag not in explained:
            field = f"stages.{ANY_STAGE}.flags.{flag}"
            gap("no_flag", ANY_STAGE, field, f"{flag} is explained at no stage, so it never fires")
    if not npc.lore:
        gap("no_lore", ANY_STAGE, "lore", "there is no lore")
    return found


def mended(data: Mapping[str, Any], field: str, text: str) -> Json:
    """Return an NPC file in which one of its gaps holds `text`; see `gaps` for the fields.

    A flag that was explained nowhere gets a rule without conditions, lore its first fact.

    Raises:
        InvalidRequest: there is no such gap.
    """
    npc = parse_npc(data, path="NPC")
    gap = next((one for one in gaps(npc) if one["field"] == field), None)
    if gap is None:
        raise InvalidRequest(f"field: {field!r} is none of this NPC's gaps", field="field")
    made: Json = deepcopy(dict(data))
    stages, stage = made["stages"], gap["quest_stage"]
    # Flags have no dots in them, stages may.
    flag = field.removesuffix(".value").rpartition(".")[2]
    if gap["kind"] == "no_lore":
        made["lore"] = [text]
    elif gap["kind"] == "no_description":
        stages[stage]["description"] = text
    elif gap["kind"] == "no_value":
        stages[npc.rule_stage(stage, flag)]["flags"][flag]["value"] = text
    else:
        # A change of stage must name one: the last, for want of a better guess.
        leads = {"value": npc.quest_stages[-1]} if flag == "quest_stage_change" else {}
        rules = stages.setdefault(ANY_STAGE, {}).setdefault("flags", {})
        rules[flag] = {"text": text, **leads}
    return made
