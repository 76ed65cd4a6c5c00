"""Writing NPC files: templates, checks, saving with a backup, cards, stubs, and who may."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api import Api
from engine.authoring import (
    NPCFolder,
    card_of,
    ink_stub,
    new_npc,
    npc_of_card,
    read_upload,
    yarn_stub,
)
from engine.authoring.containers import MOST_JSON
from engine.authoring.template import free_id
from engine.errors import InvalidRequest, NPCFileError, UnknownNPC
from engine.npc import Temper, load_folder, parse_npc
from engine.ui.npc_form import FIELDS, form_values, with_form
from tests.engines import (
    KEEPER,
    SHIPPED,
    Workshop,
    ask,
    keeper,
    keeper_data,
    korean_keeper_data,
    write_npcs,
)

CARD: dict[str, Any] = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Mira the Tinker",
        "description": "{{char}} mends clocks. She owes {{user}} a favour.",
        "personality": "curious, blunt; kind",
        "scenario": "A workshop full of clocks.",
        "first_mes": "Mind the springs, {{user}}.",
        "mes_example": "<START>\n{{user}}: Is it broken?\n{{char}}: It is only sulking.\n",
        "tags": ["clock"],
        "creator": "ada",
        "extensions": {"depth_prompt": {"depth": 4}},
        "character_book": {
            "name": "Clocks",
            "extensions": {},
            "entries": [
                {"keys": ["tower"], "content": "The tower clock is {{char}}'s.", "enabled": True},
                {"keys": ["x"], "content": "Never told.", "enabled": False},
            ],
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_npcs(tmp_path / "npcs", keeper_data(), korean_keeper_data())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


# --- new NPCs, saving, deleting --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mira", "대장장이", "../../etc/passwd", " ", "x" * 300, "a\nb"])
@pytest.mark.parametrize("language", ["en", "ko", "fr"])
def test_a_new_npc_is_valid_as_it_stands(name: str, language: str) -> None:
    npc = parse_npc(new_npc(name, language, {"mira"}), path="new")
    assert npc.id != "mira"
    assert npc.language == (language if language != "fr" else "en")


def test_ids_are_free_and_plain() -> None:
    assert free_id("Old Tom!", {"old_tom", "old_tom_2"}) == "old_tom_3"
    assert free_id("../x") == "x"
    assert free_id("실비아") == "npc"


def test_saving_writes_the_file_by_its_id_and_keeps_the_last_version(folder: Path) -> None:
    files = NPCFolder(folder)
    data = files.read(KEEPER)
    data["persona"]["name"] = "Ada Anew"
    path = files.save(data)
    assert path.parent == folder
    assert load_folder(folder).get(KEEPER).persona.name == "Ada Anew"
    assert files.backup(KEEPER)["persona"]["name"] == keeper().persona.name
    korean = files.read(KEEPER, "ko")
    assert files.save(korean).name != path.name
    assert not [one for one in folder.iterdir() if one.suffix == ".part"]


def test_what_cannot_be_loaded_again_is_not_saved(folder: Path) -> None:
    files = NPCFolder(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    broken = files.read(KEEPER)
    broken["persona"].pop("backstory")
    with pytest.raises(NPCFileError) as caught:
        files.save(broken)
    assert caught.value.field == "persona.backstory"
    disagreeing = files.read(KEEPER)
    rule = next(iter(disagreeing["stages"]["closed"]["flags"].values()))
    rule["value"] = "another_thing"
    with pytest.raises(NPCFileError, match="as in the main language"):
        files.save(disagreeing)
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == before


@pytest.mark.parametrize("npc_id", ["../keeper", "keeper/../keeper", "", "KEEPER\0", ".", "a b"])
def test_no_name_leads_out_of_the_folder(folder: Path, npc_id: str) -> None:
    files = NPCFolder(folder)
    (folder.parent / "keeper.json").write_text("{}", encoding="utf-8")
    for call in (files.read, files.delete, files.backup):
        with pytest.raises(UnknownNPC):
            call(npc_id)
    data = {**keeper_data(), "id": npc_id}
    with pytest.raises(NPCFileError):
        files.save(data)


def test_deleting_keeps_a_backup_and_the_last_npc(folder: Path) -> None:
    files = NPCFolder(folder)
    files.save(new_npc("Mira", "en"))
    files.delete("mira")
    assert files.ids() == [KEEPER]
    assert files.backup("mira")["id"] == "mira"
    files.delete(KEEPER, "ko")
    with pytest.raises(NPCFileError, match="last NPC"):
        files.delete(KEEPER)


# --- through the API -------------------------------------------------------------------------------


def test_an_npc_is_authored_through_the_api_and_talks(lab: Workshop) -> None:
    service = lab.service()
    api = Api(service).calls()
    made = api["npc_new"]("Mira")["npc"]
    assert api["npc_check"](made)["valid"] is True
    told = api["npc_save"](made)
    assert told["saved"] == "mira.json"
    assert ask(service.engine, "Where should I look?", "mira").meta.npc_id == "mira"
    assert api["npc_file"]("mira")["npc"] == made
    assert api["npc_delete"]("mira")["npcs"] == [KEEPER]
    assert api["npc_backup"]("mira")["npc"] == made
    assert api["npc_file"]("mira")["error"]["code"] == "unknown_npc"


def test_saving_and_deleting_are_the_owners(lab: Workshop) -> None:
    api = Api(lab.service(admin_token="owner")).calls()
    made = api["npc_new"]("Mira")["npc"]
    for refused in (api["npc_save"](made), api["npc_save"](made, "x"), api["npc_delete"](KEEPER)):
        assert refused["error"]["code"] == "not_allowed"
    assert api["npc_save"](made, "owner")["saved"] == "mira.json"
    assert api["npc_delete"]("mira", None, "owner")["deleted"] == "mira.json"


def test_bad_input_is_told_with_its_field(lab: Workshop) -> None:
    api = Api(lab.service()).calls()
    assert api["npc_check"]([])["error"]["field"] == "npc"
    assert api["npc_check"]({"id": "x"})["error"]["code"] == "bad_npc_file"
    assert api["npc_new"](" ")["error"]["field"] == "name"
    assert api["npc_export"](KEEPER, "pdf")["error"]["field"] == "form"
    assert api["npc_import"]("§")["error"]["field"] == "content"
    assert api["npc_import"](_b64(b"[1]"))["error"]["code"] == "bad_npc_file"
    assert api["npc_import"](_b64(b'{"a": 1}'))["error"]["field"] == "file"


def test_export_and_import_give_the_same_npc_back(lab: Workshop) -> None:
    api = Api(lab.service()).calls()
    told = api["npc_export"](KEEPER)
    back = api["npc_import"](_b64(told["content"].encode()))
    assert back == {"npcs": [json.loads(told["content"])], "warnings": []}


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# --- character cards -------------------------------------------------------------------------------


def test_a_card_becomes_a_valid_npc() -> None:
    data, warnings = npc_of_card(CARD, {"mira_the_tinker"})
    npc = parse_npc(data, path="card")
    assert warnings == []
    assert npc.id == "mira_the_tinker_2"
    assert npc.persona.backstory.startswith("Mira the Tinker mends clocks. She owes the player")
    assert npc.persona.traits == ("curious", "blunt", "kind")
    assert npc.persona.greeting == "Mind the springs, the player."
    assert npc.stage("not_started").description == "A workshop full of clocks."
    assert [(turn.player, turn.npc) for turn in npc.stage("not_started").turns] == [
        ("Is it broken?", "It is only sulking.")
    ]
    assert npc.lore == ("The tower clock is Mira the Tinker's.",)


def test_what_a_card_brings_and_an_npc_has_no_place_for_goes_out_again() -> None:
    npc = parse_npc(npc_of_card(CARD)[0], path="card")
    card = card_of(npc)
    assert card["spec"] == "chara_card_v2"
    for key in ("tags", "creator", "extensions"):
        assert card["data"][key] == CARD["data"][key]
    assert card["data"]["character_book"]["name"] == "Clocks"
    again = parse_npc(npc_of_card(card)[0], path="card")
    assert again.persona == npc.persona
    assert again.lore == npc.lore
    for shipped in load_folder(SHIPPED).all():
        assert parse_npc(npc_of_card(card_of(shipped))[0], path=shipped.id).persona.name


def test_a_long_card_is_cut_at_a_sentence_and_says_so() -> None:
    long = {**CARD, "data": {**CARD["data"], "description": "One more cog. " * 400}}
    data, warnings = npc_of_card(long)
    assert warnings == ["description: cut to 3400 characters"]
    assert parse_npc(data, path="card").persona.backstory.startswith("One more cog.")


@pytest.mark.parametrize(
    "card", [None, [], {}, {"spec": "chara_card_v1"}, {"spec": "chara_card_v2"}]
)
def test_what_is_no_card_is_refused(card: Any) -> None:
    with pytest.raises(InvalidRequest):
        npc_of_card(card)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(sorted(CARD["data"])), inner, max_size=5)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_any_card_is_a_valid_npc_or_a_plain_error(value: Any) -> None:
    data = value if isinstance(value, dict) else {}
    card = {"spec": "chara_card_v3", "data": {**data, "name": "Mira"}}
    parse_npc(npc_of_card(card)[0], path="card")


def png_with(keyword: bytes, text: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    told = chunk(b"tEXt", keyword + b"\0" + text)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + told + pixels + chunk(b"IEND", b"")


def archive_with(name: str, content: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return held.getvalue()


@pytest.mark.parametrize("keyword", [b"chara", b"ccv3", b"Chara"])
def test_a_card_is_read_from_json_png_and_charx(keyword: bytes) -> None:
    plain = json.dumps(CARD).encode()
    assert read_upload(plain) == CARD
    assert read_upload(b"\xef\xbb\xbf" + plain) == CARD
    assert read_upload(png_with(keyword, base64.b64encode(plain))) == CARD
    assert read_upload(archive_with("card.json", plain)) == CARD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXtchara\0",
        png_with(b"chara", b"not base64!"),
        png_with(b"comment", b"hello"),
        archive_with("other.json", b"{}"),
        b"PK\x03\x04 broken",
        b"[" * 200_000,
        archive_with("card.json", b" " * (MOST_JSON + 10)),
    ],
)
def test_uploads_that_are_broken_or_too_large_are_refused_in_plain_words(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the file cannot be used"):
        read_upload(content)


# --- stubs and the form ----------------------------------------------------------------------------


def test_stubs_declare_standing_and_flags() -> None:
    npc = keeper()
    ink, yarn = ink_stub(npc), yarn_stub(npc)
    assert f"VAR trust = {npc.defaults.trust:g}" in ink
    assert "=== on_give_item ===" in ink
    assert f"<<declare $trust = {npc.defaults.trust:g}>>" in yarn
    assert f"<<give_item {KEEPER}>>" in yarn
    assert yarn.count("<<if ") == yarn.count("<<endif>>")


def test_the_form_shows_and_writes_its_places_and_nothing_else() -> None:
    data = keeper_data()
    values = form_values(data)
    assert set(values) == set(FIELDS)
    assert with_form(data, values)["stages"] == data["stages"]
    changed = with_form(data, {**values, "name": " Ada ", "traits": "shy\n\n brave "})
    assert changed["persona"]["name"] == "Ada"
    assert changed["persona"]["traits"] == ["shy", "brave"]
    assert data == keeper_data()
    assert form_values({"persona": 3, "lore": "x"})["lore"] == ""
    assert "temper" not in with_form(new_npc("Mira"), form_values(new_npc("Mira")))
    grudging = with_form(data, {**values, "gain": 0.7, "loss": 1.2})
    assert parse_npc(grudging, path="form").temper == Temper(gain=0.7, loss=1.2)
    assert form_values(grudging)["gain"] == 0.7
    parse_npc(with_form(new_npc("Mira"), form_values(new_npc("Mira"))), path="form")
