"""NPC files: schema, folder, registry, and the files that ship."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import NPCFileError, UnknownNPC
from engine.npc import (
    NPC,
    DeltaPolicy,
    NPCRegistry,
    build_registry,
    load_folder,
    load_folder_leniently,
    parse_npc,
    read_npc,
)
from engine.schema import ANY_STAGE, FLAGS
from engine.text import fold_id, language_of

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "npc_configs"
SHIPPED_IDS = {
    "blacksmith_village_center",
    "captain_port_authority",
    "forest_hermit",
    "mother_abandoned_factory",
    "steward_drifting_station",
    "young_apprentice_mage",
}


def smith() -> dict[str, Any]:
    """A small but whole NPC."""
    return {
        "id": "smith",
        "persona": {"name": "Ada", "backstory": "Ada has always been the smith."},
        "defaults": {"quest_stage": "start"},
        "stages": {
            "start": {
                "description": "The forge is cold.",
                "flags": {
                    "give_item": {
                        "when": {"items": ["ore"], "min_trust": 0.3},
                        "value": "iron_sword",
                        "text": "Ada hands over the sword.",
                    },
                    "quest_stage_change": {"value": "done", "text": "The sword is made."},
                },
                "turns": [{"player": "Hi", "npc": "Hello."}],
            },
            "done": {},
            "any": {
                "description": "At the forge.",
                "flags": {"give_hint": {"text": "Ada says where the ore is."}},
                "delta_policy": {"repeat_factor": 0.5},
                "turns": [{"player": "Ore?", "npc": "In the hills.", "flags": ["give_hint"]}],
                "fallback": [{"text": "Ask me later."}],
            },
        },
    }


def changed(change: Callable[[dict[str, Any]], Any], **fields: Any) -> dict[str, Any]:
    data = {**copy.deepcopy(smith()), **fields}
    change(data)
    return data


def korean(**fields: Any) -> dict[str, Any]:
    return {**smith(), "language": "ko", **fields}


def write(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def fault_of(call: Callable[..., Any], *arguments: Any, **named: Any) -> NPCFileError:
    with pytest.raises(NPCFileError) as caught:
        call(*arguments, **named)
    return caught.value


# The schema


def test_stage_is_completed_by_any():
    npc = parse_npc(smith(), path="smith.json")
    start = npc.stage("start")
    assert npc.quest_stages == ("start", "done")
    assert start.description == "The forge is cold."
    assert set(start.flags) == {"give_item", "quest_stage_change", "give_hint"}
    assert [turn.player for turn in start.turns] == ["Hi", "Ore?"]
    assert [line.text for line in start.fallback] == ["Ask me later."]
    assert start.delta_policy == DeltaPolicy(repeat_factor=0.5)


def test_unknown_stage_is_what_any_says():
    npc = parse_npc(smith(), path="smith.json")
    assert npc.stage("nowhere") == npc.stage("done")
    assert npc.stage("nowhere").description == "At the forge."


def test_flag_of_a_stage_hides_that_of_any():
    data = changed(
        lambda d: d["stages"]["start"]["flags"].update(give_hint={"text": "Only at the start."})
    )
    npc = parse_npc(data, path="smith.json")
    assert npc.stage("start").flags["give_hint"].text == "Only at the start."
    assert npc.stage("done").flags["give_hint"].text == "Ada says where the ore is."


def test_rule_is_keyed_by_the_stage_it_is_written_at():
    npc = parse_npc(smith(), path="smith.json")
    assert npc.rule_key("start", "give_item") == "start:give_item"
    assert (
        npc.rule_key("start", "give_hint") == npc.rule_key("done", "give_hint") == "any:give_hint"
    )


def test_npc_survives_its_own_json():
    npc = parse_npc(smith(), path="smith.json")
    assert NPC.model_validate_json(npc.model_dump_json()) == npc


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d.pop("persona"), "persona"),
        (lambda d: d["persona"].pop("backstory"), "persona.backstory"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.update(schema_version=2), "schema_version"),
        (lambda d: d.update(language="fr"), "language"),
        (lambda d: d["defaults"].update(trust=2), "defaults.trust"),
        (lambda d: d["defaults"].update(trust=True), "defaults.trust"),
        (lambda d: d["defaults"].update(quest_stage="nowhere"), "defaults.quest_stage"),
        (lambda d: d["defaults"].update(quest_stage=ANY_STAGE), "defaults.quest_stage"),
        (lambda d: d.update(stages={}), "stages"),
        (lambda d: d["stages"]["any"].pop("fallback"), "stages"),
        (
            lambda d: d["stages"]["any"].update(fallback=[{"text": ""}]),
            "stages.any.fallback.0.text",
        ),
        (lambda d: d["stages"]["start"]["flags"].update(fly={"text": "x"}), "stages.start.flags"),
        (
            lambda d: d["stages"]["start"]["flags"]["give_item"].pop("text"),
            "stages.start.flags.give_item.text",
        ),
        (
            lambda d: d["stages"]["start"]["flags"]["give_item"]["when"].update(itmes=["x"]),
            "stages.start.flags.give_item.when.itmes",
        ),
        (
            lambda d: d["stages"]["start"]["flags"]["give_item"]["when"].update(said={}),
            "stages.start.flags.give_item.when.said",
        ),
        (
            lambda d: d["stages"]["start"]["flags"]["give_item"].update(threshold=1.5),
            "stages.start.flags.give_item.threshold",
        ),
        (
            lambda d: d["stages"]["start"]["flags"]["quest_stage_change"].update(value="nowhere"),
            "stages.start.flags.quest_stage_change.value",
        ),
        (
            lambda d: d["stages"]["start"]["flags"]["quest_stage_change"].pop("value"),
            "stages.start.flags.quest_stage_change.value",
        ),
        (
            lambda d: d["stages"]["start"]["turns"][0].update(flags=["fly"]),
            "stages.start.turns.0.flags",
        ),
        (
            lambda d: d["stages"]["start"]["turns"][0].update(delta={"trust": 3}),
            "stages.start.turns.0.delta.trust",
        ),
        (
            lambda d: d["stages"]["start"].update(delta_policy={"trust": {"per_turn_cap": 2}}),
            "stages.start.delta_policy.trust.per_turn_cap",
        ),
        (lambda d: d.update(forbidden=[{"name": "x"}]), "forbidden.0.reaction"),
        (lambda d: d.update(lore="one line"), "lore"),
    ],
)
def test_fault_names_file_and_field(change, place):
    fault = fault_of(parse_npc, changed(change), path="smith.json")
    assert (fault.path, fault.field) == ("smith.json", place)
    assert str(fault).startswith(f"smith.json: {place}: ")
    assert len(str(fault)) > len(f"smith.json: {place}: ")


@pytest.mark.parametrize(
    "npc_id",
    [
        *("", "../smith", "a/b", "a\\b", "..", ".", "a.b", "Smith", "smith\n", "a b", "/etc", "_a"),
        *("a" * 64, "smith\x00", "é", "대장장이"),
    ],
)
def test_id_that_could_be_a_path_is_refused(npc_id):
    assert fault_of(parse_npc, {**smith(), "id": npc_id}, path="x.json").field == "id"


# One file


def test_file_may_carry_its_language(tmp_path):
    for name in ("smith.json", "smith.en.json"):
        assert read_npc(write(tmp_path, name, smith())).id == "smith"


@pytest.mark.parametrize("name", ["Smith.json", "other.json", "smith.ko.json", "smith.v2.json"])
def test_file_of_another_name_is_refused(tmp_path, name):
    fault = fault_of(read_npc, write(tmp_path, name, smith()))
    assert (fault.path, fault.field) == (name, "id")
    assert "smith.json" in str(fault)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id": }', "line 1, column 8"),
        ('{"id": "smith", "id": "smith"}', "'id' stands twice"),
        ('{"id": "smith", "stages": {"any": {}, "any": {}}}', "'any' stands twice"),
        ("[]", "one JSON object"),
        ("", "not valid JSON"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_file_that_is_not_an_object_of_json_is_refused(tmp_path, text, says):
    fault = fault_of(read_npc, write(tmp_path, "smith.json", text))
    assert fault.path == "smith.json"
    assert str(fault).startswith("smith.json: ")
    assert says in str(fault)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "latin.json").write_bytes(b'{"id": "\xe9"}')
    for name in ("folder.json", "latin.json", "missing.json"):
        assert fault_of(read_npc, tmp_path / name).path == name


# The registry


def registry(**files: dict[str, Any]) -> NPCRegistry:
    """Build a registry; `smith__ko` stands for smith.ko.json."""
    names = {name.replace("__", ".") + ".json": data for name, data in files.items()}
    return build_registry({name: parse_npc(data, path=name) for name, data in names.items()})


def test_main_language_is_that_of_the_plain_file_name():
    both = registry(smith__en=smith(), smith=korean())
    assert both.languages("smith") == ("ko", "en")
    assert both.get("smith").language == "ko"
    assert both.get("smith", "en").language == "en"
    assert len(both) == 1
    assert len(both.all()) == 2


def test_language_without_a_file_falls_back_to_the_main_one():
    one = registry(smith=smith())
    assert one.get("smith", "ko") is one.get("smith")
    assert one.get("smith", None) is one.get("smith")


def test_unknown_npc_is_named_with_the_known_ones():
    with pytest.raises(UnknownNPC, match=r"'ghost'.*known: smith") as caught:
        registry(smith=smith()).get("ghost")
    assert caught.value.field == "npc_id"
    with pytest.raises(UnknownNPC, match="known: none"):
        NPCRegistry().languages("../smith")


def test_second_file_in_one_language_is_refused():
    fault = fault_of(registry, smith=smith(), smith__en=smith())
    assert (fault.path, fault.field) == ("smith.en.json", "language")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d["stages"].update(later={}), "stages"),
        (lambda d: d["stages"]["start"]["flags"].pop("give_item"), "stages.start.flags"),
        (
            lambda d: d["stages"]["start"]["flags"]["give_item"].update(value="spoon"),
            "stages.start.flags.give_item.value",
        ),
        *(
            (
                lambda d, part=part, value=value: d["stages"]["start"]["flags"]["give_item"][
                    "when"
                ].update({part: value}),
                f"stages.start.flags.give_item.when.{part}",
            )
            for part, value in [
                ("items", []),
                ("actions", ["bowed"]),
                ("game_state", {"open": True}),
                ("min_trust", 0.1),
                ("min_relationship", 0.1),
            ]
        ),
    ],
)
def test_variant_that_differs_in_more_than_words_is_refused(change, place):
    fault = fault_of(registry, smith=smith(), smith__ko=changed(change, language="ko"))
    assert (fault.path, fault.field) == ("smith.ko.json", place)
    assert str(fault).startswith(f"smith.ko.json: {place}: ")


def test_variant_may_differ_in_words():
    def translate(data: dict[str, Any]) -> None:
        data["persona"]["name"] = "에이다"
        data["stages"]["start"]["flags"]["give_item"]["text"] = "검을 건넨다."
        data["stages"]["start"]["turns"] = []

    assert registry(smith=smith(), smith__ko=changed(translate, language="ko")).languages(
        "smith"
    ) == ("en", "ko")


def test_fingerprint_changes_with_an_npc_and_only_then():
    one, same = registry(smith=smith()), registry(smith=smith())
    other = registry(smith=changed(lambda d: d["persona"].update(name="Eve")))
    assert one.fingerprint == same.fingerprint != other.fingerprint


# A folder


def test_folder_is_all_or_nothing(tmp_path):
    write(tmp_path, "smith.json", smith())
    write(tmp_path, "notes.txt", "not an NPC")
    assert set(load_folder(tmp_path).by_id) == {"smith"}
    write(tmp_path, "zed.json", "{")
    assert fault_of(load_folder, tmp_path).path == "zed.json"


def test_empty_or_missing_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert "no NPC files" in str(fault_of(load_folder, folder))


def test_lenient_loading_takes_what_it_can(tmp_path):
    write(tmp_path, "smith.json", smith())
    write(tmp_path, "a.json", "{")
    write(tmp_path, "zed.json", {**smith(), "id": "zed", "lore": 5})
    found, faults = load_folder_leniently(tmp_path)
    assert set(found.by_id) == {"smith"}
    assert [(fault.path, fault.field) for fault in faults] == [
        ("a.json", None),
        ("zed.json", "lore"),
    ]


def test_bad_file_keeps_its_last_good_version(tmp_path):
    write(tmp_path, "smith.json", smith())
    write(tmp_path, "smith.ko.json", korean())
    good = load_folder(tmp_path)
    write(tmp_path, "smith.ko.json", "{")
    found, faults = load_folder_leniently(tmp_path, good)
    assert [fault.path for fault in faults] == ["smith.ko.json"]
    assert found == good


def test_removed_file_is_gone_and_mended_file_counts(tmp_path):
    write(tmp_path, "smith.json", smith())
    write(tmp_path, "zed.json", {**smith(), "id": "zed"})
    good = load_folder(tmp_path)
    (tmp_path / "zed.json").unlink()
    write(tmp_path, "smith.json", changed(lambda d: d["persona"].update(name="Eve")))
    found, faults = load_folder_leniently(tmp_path, good)
    assert (set(found.by_id), faults) == ({"smith"}, [])
    assert found.get("smith").persona.name == "Eve"


def test_last_good_variant_that_no_longer_fits_is_left_out_and_blames_no_other(tmp_path):
    write(tmp_path, "smith.json", smith())
    write(tmp_path, "smith.ko.json", korean())
    write(tmp_path, "zed.json", {**smith(), "id": "zed"})
    good = load_folder(tmp_path)
    write(tmp_path, "smith.json", changed(lambda d: d["stages"].update(later={})))
    found, faults = load_folder_leniently(tmp_path, good)
    assert [fault.path for fault in faults] == ["smith.ko.json"]
    assert found.languages("smith") == ("en",)
    assert found.get("smith").quest_stages == ("start", "done", "later")
    assert found.get("zed") == good.get("zed")


def test_broken_new_main_file_does_not_push_out_a_good_variant(tmp_path):
    write(tmp_path, "smith.en.json", smith())
    good = load_folder(tmp_path)
    write(tmp_path, "smith.json", "{")
    found, faults = load_folder_leniently(tmp_path, good)
    assert [fault.path for fault in faults] == ["smith.json"]
    assert found == good


def test_disagreement_is_blamed_on_the_variant_whatever_its_language(tmp_path):
    write(tmp_path, "smith.json", korean())
    write(tmp_path, "smith.en.json", changed(lambda d: d["stages"].update(later={})))
    found, faults = load_folder_leniently(tmp_path)
    assert [fault.path for fault in faults] == ["smith.en.json"]
    assert found.languages("smith") == ("ko",)


# What ships


@pytest.fixture(scope="module")
def shipped() -> NPCRegistry:
    return load_folder(SHIPPED)


def test_every_shipped_file_loads(shipped):
    assert set(shipped.by_id) == SHIPPED_IDS
    assert len(shipped.all()) == len(list(SHIPPED.glob("*.json")))


def test_shipped_files_are_written_in_both_languages(shipped):
    assert {npc.language for npc in shipped.all()} == {"en", "ko"}
    for npc in shipped.all():
        lines = [turn.npc for stage in npc.stages.values() for turn in stage.turns]
        assert language_of(" ".join(lines)) == npc.language, (npc.id, npc.language)


def test_shipped_files_use_every_flag(shipped):
    used = {flag for npc in shipped.all() for stage in npc.stages.values() for flag in stage.flags}
    assert used == set(FLAGS)


def test_every_shipped_stage_has_a_fallback_line_and_every_npc_forbidden_triggers(shipped):
    for npc in shipped.all():
        assert npc.forbidden, npc.id
        for trigger in npc.forbidden:
            assert trigger.keywords or trigger.sentences, (npc.id, trigger.name)
        for name in npc.quest_stages:
            assert npc.stage(name).fallback, (npc.id, name)


def test_every_flag_of_a_shipped_stage_has_an_authored_turn(shipped):
    lacking = [
        f"{npc.id}.{npc.language}: {name}: {flag}"
        for npc in shipped.all()
        for name in npc.quest_stages
        for flag in npc.stage(name).flags
        if not any(flag in turn.flags for turn in npc.stage(name).turns)
    ]
    assert lacking == []


def test_every_flag_of_a_shipped_turn_has_a_rule(shipped):
    lacking = [
        f"{npc.id}.{npc.language}: {name}: {flag}: {turn.player}"
        for npc in shipped.all()
        for name in npc.quest_stages
        for turn in npc.stages[name].turns
        for flag in turn.flags
        if flag not in npc.stage(name).flags
    ]
    assert lacking == []


def test_shipped_stage_changes_lead_to_another_stage(shipped):
    changes = [
        (npc, name, npc.stage(name).flags["quest_stage_change"].value)
        for npc in shipped.all()
        for name in npc.quest_stages
        if "quest_stage_change" in npc.stage(name).flags
    ]
    assert changes
    for npc, name, value in changes:
        assert value in npc.quest_stages, (npc.id, name, value)
        assert value != name, (npc.id, name)


def test_shipped_values_and_conditions_are_written_as_machine_names(shipped):
    for npc in shipped.all():
        for stage in npc.stages.values():
            for flag, rule in stage.flags.items():
                names = [*rule.when.items, *rule.when.actions, *rule.when.game_state]
                names += [rule.value] if rule.value else []
                assert [name for name in names if name != fold_id(name)] == [], (npc.id, flag)


def test_npc_is_frozen(shipped):
    with pytest.raises(ValidationError, match="frozen"):
        shipped.all()[0].id = "other"
