"""Every error of the knowledge index, in one tree.

    KnowledgeError (RuntimeError)       also: the index is closed, or the embedder failed
    ├── KnowledgeCorrupt                files damaged or gone; `open_or_rebuild` makes a new index
    └── KnowledgeUnavailable            locked, read-only or out of space; free it and try again

Knows nothing of Chroma, whose own errors are translated into these in `rag.index`.
"""

from __future__ import annotations


class KnowledgeError(RuntimeError):
    """The index cannot answer; the message says why and what to do."""


class KnowledgeCorrupt(KnowledgeError):
    """The index is damaged, or was deleted or replaced while it was open."""


class KnowledgeUnavailable(KnowledgeError):
    """The index may be sound but cannot be used now: locked, read-only, or the disk is full."""
