"""The public calls that write NPC files: the studio's, and a build script's.

Reading, checking and bringing over is everybody's; saving and deleting is the owner's (see
`engine.owner`). As in `engine.api`, errors come back as values. Knows nothing of the page.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.authoring import (
    NPCFolder,
    card_of,
    ink_stub,
    new_npc,
    npc_of_card,
    read_upload,
    yarn_stub,
)
from engine.errors import InvalidRequest
from engine.lookup import gaps, mended
from engine.npc import NPC, parse_npc
from engine.npc_import import import_documents
from engine.owner import Owner
from engine.schema import parse_request
from engine.service import EngineService

Json = dict[str, Any]
Guard = Callable[[Callable[[], Json]], Json]

FORMS = ("json", "card", "ink", "yarn")


class NPCCalls:
    """The calls on one folder of NPC files.

    Args:
        service: whose folder it is, and who reads it again after a change.
        guarded: turns an engine error into its payload.
        owner: lets the owner pass.
    """

    def __init__(self, service: EngineService, guarded: Guard, owner: Owner) -> None:
        self._service = service
        self._guarded = guarded
        self._owner = owner

    @property
    def _folder(self) -> NPCFolder:
        return NPCFolder(self._service.settings.npc_dir)

    def npc_file(self, npc_id: str, language: str | None = None) -> dict[str, Any]:
        """Return an NPC's file, as it can be saved again."""
        return self._guarded(lambda: {"npc": self._folder.read(_text(npc_id, "npc_id"), language)})

    def npc_new(self, name: str, language: str = "en") -> dict[str, Any]:
        """Return a new NPC, valid as it stands, with an id of its own; nothing is saved."""
        return self._guarded(
            lambda: {"npc": new_npc(_text(name, "name"), language, self._folder.ids())}
        )

    def npc_check(self, npc: dict[str, Any]) -> dict[str, Any]:
        """Check an NPC file as saving would; say what is missing though it is valid."""

        def run() -> Json:
            checked = self._folder.check(_object(npc))
            return {"valid": True, "npc_id": checked.id, "gaps": gaps(checked)}

        return self._guarded(run)

    def npc_try(
        self,
        npc: dict[str, Any],
        text: str,
        stage: str = "",
        context: dict[str, Any] | None = None,
        gen_params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Say `text` to an NPC as it is written, unsaved, on a stage of one's own: a turn's result.

        `stage` of the answer goes with the next call, to go on from there; meanwhile the NPC may
        change.
        """

        def run() -> Json:
            # As the file alone says: its other language may follow when this one is right.
            checked = parse_npc(_object(npc), path="NPC")
            request = parse_request(
                text=text,
                npc_id=checked.id,
                player_id="rehearsal",
                context=context,
                gen_params=gen_params,
            )
            held = stage if isinstance(stage, str) else ""
            name, result = self._service.rehearsals.play(checked, request, held)
            return {"stage": name, "result": result.model_dump(mode="json")}

        return self._guarded(run)

    def npc_save(self, npc: dict[str, Any], token: str = "") -> dict[str, Any]:
        """Save an NPC file and serve it; the last version is kept. The owner's to do."""

        def run() -> Json:
            self._owner.check(token)
            path = self._folder.save(_object(npc))
            return {"saved": path.name, **self._service.reload()}

        return self._guarded(run)

    def npc_mend(
        self, npc_id: str, field: str, text: str, language: str | None = None, token: str = ""
    ) -> dict[str, Any]:
        """Fill one of the gaps that `npc_check` and `documents` name, and save. The owner's to do."""

        def run() -> Json:
            self._owner.check(token)
            data = self._folder.read(_text(npc_id, "npc_id"), language)
            fresh = mended(data, _text(field, "field"), _text(text, "text").strip())
            path = self._folder.save(fresh)
            return {"saved": path.name, **self._service.reload()}

        return self._guarded(run)

    def npc_delete(
        self, npc_id: str, language: str | None = None, token: str = ""
    ) -> dict[str, Any]:
        """Delete an NPC's file, which is kept as the last version. The owner's to do."""

        def run() -> Json:
            self._owner.check(token)
            path = self._folder.delete(_text(npc_id, "npc_id"), language)
            return {"deleted": path.name, **self._service.reload()}

        return self._guarded(run)

    def npc_backup(self, npc_id: str, language: str | None = None) -> dict[str, Any]:
        """Return the version of an NPC's file before the one in force, to be saved again."""
        return self._guarded(
            lambda: {"npc": self._folder.backup(_text(npc_id, "npc_id"), language)}
        )

    def npc_export(
        self, npc_id: str, form: str = "json", language: str | None = None
    ) -> dict[str, Any]:
        """Return an NPC as a file's content: `json`, `card` (V2), `ink` or `yarn`."""

        def run() -> Json:
            npc = self._service.registry.get(_text(npc_id, "npc_id"), language)
            if form == "json":
                data = self._folder.read(npc.id, language)
                return _file(f"{npc.id}.json", json.dumps(data, ensure_ascii=False, indent=2))
            writers: dict[str, tuple[str, Callable[[NPC], str]]] = {
                "card": (
                    f"{npc.id}.card.json",
                    lambda one: json.dumps(card_of(one), ensure_ascii=False, indent=2),
                ),
                "ink": (f"{npc.id}.ink", ink_stub),
                "yarn": (f"{npc.id}.yarn", yarn_stub),
            }
            if form not in writers:
                raise InvalidRequest(f"form: must be one of {', '.join(FORMS)}", field="form")
            name, write = writers[form]
            return _file(name, write(npc))

        return self._guarded(run)

    def npc_import(self, content: str) -> dict[str, Any]:
        """Read NPCs out of a file given in base64: NPC file, document list, character card."""

        def run() -> Json:
            try:
                raw = base64.b64decode(_text(content, "content"), validate=True)
            except (binascii.Error, ValueError) as exc:
                raise InvalidRequest("content: must be base64", field="content") from exc
            return self.brought_over(raw)

        return self._guarded(run)

    def brought_over(self, content: bytes) -> Json:
        """Return the NPCs of an uploaded file and what was lost on the way; nothing is saved.

        Raises:
            InvalidRequest: it is none of the forms, or is too large.
            NPCFileError: a document list that cannot be brought over.
        """
        data = read_upload(content)
        if isinstance(data, list):
            found = import_documents(data)
            return {
                "npcs": [npc.model_dump(mode="json", exclude_defaults=True) for npc in found.npcs],
                "warnings": [str(one) for one in found.warnings],
            }
        if isinstance(data, Mapping) and "spec" in data:
            made, warnings = npc_of_card(data, self._folder.ids())
            return {"npcs": [made], "warnings": warnings}
        if isinstance(data, Mapping) and "persona" in data:
            return {"npcs": [dict(data)], "warnings": []}
        raise InvalidRequest(
            "the file holds neither an NPC, nor a document list, nor a character card", field="file"
        )

    def calls(self) -> dict[str, Callable[..., Any]]:
        """Return every call by its API name."""
        named = (
            self.npc_file,
            self.npc_new,
            self.npc_check,
            self.npc_try,
            self.npc_save,
            self.npc_mend,
            self.npc_delete,
            self.npc_backup,
            self.npc_export,
            self.npc_import,
        )
        return {call.__name__: call for call in named}


def _file(name: str, content: str) -> Json:
    return {"file": name, "content": content if content.endswith("\n") else content + "\n"}


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest("npc: must be an object", field="npc")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequest(f"{field}: must be a non-empty text", field=field)
    return value
