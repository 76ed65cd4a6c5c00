"""Who may change what everybody shares: the owner, by a token, or anyone on one's own machine.

    on one's own machine, no ADMIN_TOKEN      everybody
    ADMIN_TOKEN set                           whoever sends it
    on a Space, no ADMIN_TOKEN                nobody, and the message says what to set

Knows nothing of what is changed.
"""

from __future__ import annotations

import hmac
import os

from engine.errors import NotAllowed


def check_owner(token: str, admin_token: str) -> None:
    """Let the owner pass.

    Args:
        token: what the caller sent.
        admin_token: the setting.

    Raises:
        NotAllowed: the caller is not the owner.
    """
    if admin_token:
        if not hmac.compare_digest(token.encode(), admin_token.encode()):
            raise NotAllowed(
                "only the owner may do this: send ADMIN_TOKEN's value as token", field="token"
            )
    elif os.environ.get("SPACE_ID"):
        raise NotAllowed(
            "only the owner may do this on a Space: set the secret ADMIN_TOKEN, and send it as token",
            field="token",
        )
