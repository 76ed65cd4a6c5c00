"""Reading the older list from a JSON file, and writing NPC files.

Knows nothing of what stands in the documents.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import NPCFileError
from engine.npc import NPC
from engine.npc_import.mapping import ImportResult, import_documents


def import_file(path: Path | str) -> ImportResult:
    """Read a list of documents from a JSON file and import it.

    Raises:
        NPCFileError: unreadable, not JSON, or as in `import_documents`.
    """
    path = Path(path)
    try:
        documents = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles
        )
    except json.JSONDecodeError as exc:
        raise NPCFileError(
            f"{path.name}: not valid JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}",
            path=str(path),
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise NPCFileError(f"{path.name}: cannot be read: {exc}", path=str(path)) from exc
    if not isinstance(documents, list):
        raise NPCFileError(f"{path.name}: must hold a JSON list of documents", path=str(path))
    return import_documents(documents, source=path.name)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the key {doubled!r} stands twice in one object")
    return found


def write_npcs(npcs: Iterable[NPC], folder: Path, *, force: bool = False) -> list[Path]:
    """Write each NPC to `<folder>/<id>.json`; first all in full beside it, then all in place.

    Raises:
        NPCFileError: a file is there already and `force` is not given, or the disk refuses.
    """
    texts = {folder / f"{npc.id}.json": _file_text(npc) for npc in npcs}
    there = [str(path) for path in texts if path.exists()]
    if there and not force:
        raise NPCFileError(
            f"{there[0]}: is there already; --force overwrites it, --out picks another folder",
            path=there[0],
        )
    # The ending keeps a half-written file from being taken for an NPC.
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, draft in drafts.items():
            with draft.open("w", encoding="utf-8") as file:
                file.write(texts[path])
                file.flush()
                os.fsync(file.fileno())
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as exc:
        raise NPCFileError(f"{folder}: cannot be written: {exc}", path=str(folder)) from exc
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()
    return list(texts)


def _file_text(npc: NPC) -> str:
    data = npc.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
