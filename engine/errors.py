"""Every error the engine raises on purpose, in one tree.

    EngineError
    ├── InvalidRequest (ValueError)        the caller's input; fix it and call again
    │   ├── UnknownNPC (LookupError)
    │   └── PromptError                    a prompt that cannot be encoded or parsed
    ├── NotAllowed (PermissionError)       only the owner may do this
    ├── ConflictError (RuntimeError)       a turn_id or expected_version that does not fit
    ├── NPCFileError (ValueError)          an NPC file, with its path and field
    ├── NotReady (RuntimeError)            no model yet, or none that fits; says what to do
    ├── Busy (RuntimeError)                the queue is full; retry
    ├── WeightsError (OSError)             base model or embedder could not be had
    │   ├── NoIndex                        the package index could not be reached
    │   ├── ChecksumMismatch               the download is not the expected file
    │   └── NoSpace                        the disk is full
    ├── ModelError (RuntimeError)          the model failed during a turn; retry
    └── StateStoreError (OSError)          the session database failed; retry

`to_payload` is the only form in which an error leaves the program.
Knows nothing of HTTP or Gradio.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EngineError(Exception):
    """Base of the tree.

    Args:
        message: one or two plain sentences: what is wrong, and what to do about it.
        field: dotted path of the offending input ("context.trust"), where there is one.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def to_payload(self) -> dict[str, Any]:
        """Return `{"error": {"code", "message", "retryable", "field"}}`, ready for JSON."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "retryable": self.retryable,
                "field": self.field,
            }
        }


class InvalidRequest(EngineError, ValueError):
    """Input that can never succeed as it stands."""

    code = "invalid_request"


class UnknownNPC(InvalidRequest, LookupError):
    """No NPC file carries this id."""

    code = "unknown_npc"


class PromptError(InvalidRequest):
    """A ready prompt that breaks the marker rules, or text that cannot fit."""

    code = "bad_prompt"


class NotAllowed(EngineError, PermissionError):
    """Only the owner may do this; the message says how to show that one is."""

    code = "not_allowed"


class ConflictError(EngineError, RuntimeError):
    """The turn_id was used for another body, or the state has moved on."""

    code = "conflict"


class NPCFileError(EngineError, ValueError):
    """An NPC file that cannot be used; `path` is the file, `field` the place in it."""

    code = "bad_npc_file"

    def __init__(self, message: str, *, path: str, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.path = path


class NotReady(EngineError, RuntimeError):
    """The engine cannot serve turns; the message says why and what to do."""

    code = "not_ready"
    retryable = True


class Busy(EngineError, RuntimeError):
    """Too many turns are waiting."""

    code = "busy"
    retryable = True


class WeightsError(EngineError, OSError):
    """Base model or embedder files could not be prepared."""

    code = "weights"


class NoIndex(WeightsError):
    """The package index could not be reached."""

    code = "no_index"
    retryable = True


class ChecksumMismatch(WeightsError):
    """The file that came is not the file that was asked for."""

    code = "checksum_mismatch"


class NoSpace(WeightsError):
    """The disk that holds the model cache is full."""

    code = "no_space"


class ModelError(EngineError, RuntimeError):
    """The model failed while it worked on a turn; nothing was committed."""

    code = "model_failed"
    retryable = True


class StateStoreError(EngineError, OSError):
    """The session database could not be read or written; nothing was committed."""

    code = "state_store"
    retryable = True
