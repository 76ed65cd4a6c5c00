"""What an NPC may be brought over in: JSON, a PNG with a card inside, or a .charx archive.

Uploads are limited in size before and after unpacking, and no pixel is decoded. Pure.

Sources: PNG specification, chunks tEXt; Character Card V2 (keyword `chara`) and V3 (`ccv3`, .charx).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import zipfile
from typing import Any

from engine.errors import InvalidRequest

MOST_BYTES = 16_000_000
MOST_JSON = 2_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_KEYWORDS = (b"ccv3", b"chara")  # the newer form goes first


def read_upload(content: bytes) -> Any:
    """Return the JSON value in an uploaded file.

    Raises:
        InvalidRequest: too large, or no JSON, PNG card or .charx.
    """
    if len(content) > MOST_BYTES:
        raise _bad(f"the file is larger than {MOST_BYTES // 1_000_000} MB")
    if content.startswith(_PNG):
        return _json(_card_in_png(content))
    if content.startswith(_ZIP):
        return _json(_card_in_zip(content))
    return _json(content)


def _json(content: bytes) -> Any:
    if len(content) > MOST_JSON:
        raise _bad(f"its JSON is larger than {MOST_JSON // 1_000_000} MB")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise _bad("it is neither JSON, nor a PNG or .charx with a character card") from exc


def _card_in_png(content: bytes) -> bytes:
    found: dict[bytes, bytes] = {}
    at = len(_PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + length]
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            found.setdefault(keyword.lower(), text)
        if kind == b"IEND" or len(body) < length:
            break
        at += 12 + length
    for keyword in _KEYWORDS:
        if keyword in found:
            try:
                return base64.b64decode(found[keyword], validate=True)
            except (binascii.Error, ValueError) as exc:
                raise _bad("the card in this PNG is damaged") from exc
    raise _bad("there is no character card in this PNG")


def _card_in_zip(content: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = archive.getinfo("card.json")
            if entry.file_size > MOST_JSON:
                raise _bad(f"its card.json is larger than {MOST_JSON // 1_000_000} MB")
            with archive.open(entry) as file:
                # The size that an archive states need not be true.
                return file.read(MOST_JSON + 1)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError) as exc:
        raise _bad("this archive holds no card.json that can be read") from exc


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest(f"the file cannot be used: {why}", field="file")
