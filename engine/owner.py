"""Who may change what everybody shares: the owner, or anyone on one's own machine.

    on one's own machine, no ADMIN_TOKEN      everybody
    ADMIN_TOKEN set                           whoever sends it
    on a Space                                who signed in and is named by OWNERS, or made the Space
    else                                      nobody, and the message says what to do

Knows nothing of what is changed, nor of how somebody signs in.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from engine.errors import NotAllowed


def owner_names(owners: str) -> frozenset[str]:
    """Return the names of the setting OWNERS (by comma); empty: the one who made the Space."""
    names = {name.strip().casefold() for name in owners.split(",")} - {""}
    made_by = os.environ.get("SPACE_AUTHOR_NAME", "").strip().casefold()
    return frozenset(names or ({made_by} - {""}))


class Owner:
    """Lets the owner pass.

    Args:
        admin_token: the setting; empty: there is none.
        names: of those who are owners once they have signed in.
        signed_in: tells who calls now, by their verified name; "" where nobody signed in.
    """

    def __init__(
        self,
        admin_token: str,
        names: frozenset[str] = frozenset(),
        signed_in: Callable[[], str] = str,
    ) -> None:
        self._admin_token = admin_token
        self._names = names
        self._signed_in = signed_in

    def check(self, token: object) -> None:
        """Pass, or refuse.

        Args:
            token: what the caller sent.

        Raises:
            NotAllowed: the caller is not the owner.
        """
        given = token if isinstance(token, str) else ""
        if self._admin_token and hmac.compare_digest(given.encode(), self._admin_token.encode()):
            return
        name = self._signed_in().casefold()
        if name and name in self._names:
            return
        if self._admin_token:
            raise NotAllowed(
                "only the owner may do this: sign in as the owner, or send ADMIN_TOKEN's value as "
                "token",
                field="token",
            )
        if os.environ.get("SPACE_ID"):
            raise NotAllowed(
                "only the owner may do this on a Space: sign in as its owner, or set the secret "
                "ADMIN_TOKEN and send it as token",
                field="token",
            )
