"""The folder of NPC files as something to write in: checked first, the last version kept.

A file's name comes from the validated id and language alone, never from input. Every write is checked
against all the other files, so that a folder that loaded will load again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import NPCFileError, UnknownNPC
from engine.npc import NPC, build_registry, load_folder_leniently, parse_npc, read_npc

BACKUPS = ".backup"


class NPCFolder:
    """NPC files of one folder.

    Args:
        folder: where they lie; backups of the last version lie in its `.backup`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ids(self) -> list[str]:
        """Return the ids of all NPCs whose files can be read."""
        return sorted(load_folder_leniently(self._folder)[0].by_id)

    def read(self, npc_id: str, language: str | None = None) -> dict[str, Any]:
        """Return an NPC's file as data.

        Raises:
            UnknownNPC: there is no such file.
        """
        path = self._path(npc_id, language)
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return data

    def check(self, data: Mapping[str, Any]) -> NPC:
        """Return the NPC that `data` says, if it goes with all the other files.

        Raises:
            NPCFileError: naming the field.
        """
        npc = parse_npc(data, path="NPC")
        files = {path.name: read_npc(path) for path in self._others(npc)}
        build_registry({**files, self._name(npc): npc})
        return npc

    def save(self, data: Mapping[str, Any]) -> Path:
        """Check and write an NPC; a version that it replaces goes to `.backup`.

        Raises:
            NPCFileError: naming the field; nothing is written.
        """
        npc = self.check(data)
        target = self._folder / self._name(npc)
        text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=self._folder, prefix=".npc-", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            if target.exists():
                self._back_up(target)
            Path(fresh).replace(target)
            target.chmod(0o644)
        finally:
            Path(fresh).unlink(missing_ok=True)
        return target

    def delete(self, npc_id: str, language: str | None = None) -> Path:
        """Take an NPC's file out of the folder; it is kept in `.backup`.

        Raises:
            UnknownNPC: there is no such file.
            NPCFileError: it is the last one; an empty folder does not serve.
        """
        path = self._path(npc_id, language)
        if len(list(self._folder.glob("*.json"))) == 1:
            raise NPCFileError(
                f"{path.name}: is the last NPC; add another one first", path=path.name
            )
        self._back_up(path)
        path.unlink()
        return path

    def backup(self, npc_id: str, language: str | None = None) -> dict[str, Any]:
        """Return the last version of an NPC's file before the one in force, or before its deletion.

        Raises:
            UnknownNPC: there is none.
        """
        for name in _names(npc_id, language):
            path = self._folder / BACKUPS / name
            if _plain(npc_id) and path.is_file():
                data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return data
        raise UnknownNPC(f"there is no earlier version of {npc_id!r}", field="npc_id")

    def _others(self, npc: NPC) -> list[Path]:
        """Return the files of the same NPC in other languages; others cannot disagree with it."""
        own = self._name(npc)
        found = {*self._folder.glob(f"{npc.id}.json"), *self._folder.glob(f"{npc.id}.*.json")}
        return sorted(path for path in found if path.name != own)

    def _name(self, npc: NPC) -> str:
        """Return the file that holds this id and language, or a new one's name."""
        main = self._folder / f"{npc.id}.json"
        if not main.is_file() or read_npc(main).language == npc.language:
            return main.name
        return f"{npc.id}.{npc.language}.json"

    def _path(self, npc_id: str, language: str | None) -> Path:
        if _plain(npc_id):
            for name in _names(npc_id, language):
                path = self._folder / name
                if path.is_file():
                    return path
        raise UnknownNPC(f"there is no NPC {npc_id!r}", field="npc_id")

    def _back_up(self, path: Path) -> None:
        kept = self._folder / BACKUPS
        kept.mkdir(exist_ok=True)
        fresh = kept / f"{path.name}.part"
        fresh.write_bytes(path.read_bytes())
        fresh.replace(kept / path.name)


def _names(npc_id: str, language: str | None) -> list[str]:
    own = [f"{npc_id}.{language}.json"] if language in ("en", "ko") else []
    return [*own, f"{npc_id}.json"]


def _plain(npc_id: str) -> bool:
    return bool(npc_id) and npc_id.replace("_", "a").isalnum() and npc_id.isascii()
