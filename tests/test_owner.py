"""Who may change what everybody shares: the owner, or anyone on one's own machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.api import Api
from engine.errors import NotAllowed
from engine.owner import Owner, owner_names
from engine.ui.sign_in import name_of
from tests.engines import KEEPER, Workshop

OWNERS_CALLS: dict[str, tuple[Any, ...]] = {
    "reload": (),
    "npc_save": ({"id": "x"},),
    "npc_delete": (KEEPER,),
    "npc_mend": (KEEPER, "lore", "The lamp is out."),
    "scenes_run": (),
    "scene_record": ("p1", KEEPER),
    "threshold_try": (KEEPER, "closed", "give_item", 0.5),
    "threshold_save": (KEEPER, "closed", "give_item", 0.5),
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


@pytest.fixture
def on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "ada/npc")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "Ada")
    monkeypatch.setenv("SPACE_HOST", "ada-npc.example")


def signed_in(name: str, **changes: Any) -> Any:
    """Return a request as Starlette hands it on, with a session cookie that was checked."""
    info = {"userinfo": {"preferred_username": name}, "expires_at": time.time() + 60, **changes}
    headers = {"host": "10.0.0.1:7860", "origin": "https://ada-npc.example"}
    return SimpleNamespace(scope={"session": {"oauth_info": info}}, headers=headers)


def test_everybody_may_on_ones_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    Owner("").check("")
    Owner("").check("whatever")


@pytest.mark.usefixtures("on_a_space")
def test_nobody_may_on_a_space_without_a_token_and_hears_what_to_set() -> None:
    for token in ("", "guess", None):
        with pytest.raises(NotAllowed, match="set the secret ADMIN_TOKEN"):
            Owner("").check(token)


@pytest.mark.parametrize("token", ["", "owner ", "Owner", "주인"])
def test_a_wrong_token_is_refused_everywhere(token: str) -> None:
    with pytest.raises(NotAllowed, match="only the owner"):
        Owner("owner").check(token)
    Owner("owner").check("owner")


@pytest.mark.usefixtures("on_a_space")
def test_who_made_the_space_may_once_signed_in_and_nobody_else() -> None:
    assert owner_names("") == {"ada"}
    assert owner_names("bob, Eve,") == {"bob", "eve"}
    Owner("", owner_names(""), lambda: "ada").check("")
    Owner("secret", owner_names(""), lambda: "Ada").check("")
    for name in ("", "mallory"):
        with pytest.raises(NotAllowed):
            Owner("", owner_names(""), lambda name=name: name).check("")


def test_a_space_without_a_known_maker_has_no_owner_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPACE_ID", "ada/npc")
    monkeypatch.delenv("SPACE_AUTHOR_NAME", raising=False)
    with pytest.raises(NotAllowed):
        Owner("", owner_names(" , "), lambda: "").check("")


@pytest.mark.usefixtures("on_a_space")
def test_a_sign_in_counts_while_it_is_valid_and_from_the_page_itself() -> None:
    assert name_of(signed_in("Ada")) == "Ada"
    assert name_of(signed_in("Ada", expires_at=time.time() - 1)) == ""
    assert name_of(signed_in("Ada", expires_at=None)) == ""
    assert name_of(signed_in("Ada", userinfo=None)) == ""
    for origin in ("https://evil.example", "", "null"):
        request = signed_in("Ada")
        request.headers["origin"] = origin
        assert name_of(request) == ""
    assert name_of(SimpleNamespace(scope={}, headers={})) == ""
    assert name_of(None) == ""


@pytest.mark.parametrize("name", OWNERS_CALLS)
def test_what_everybody_shares_is_the_owners_to_change(lab: Workshop, name: str) -> None:
    api = Api(lab.service(admin_token="owner"))
    call = api.calls()[name]
    for token in ("", "guess", None):
        refused = call(*OWNERS_CALLS[name], token=token)["error"]
        assert (refused["code"], refused["field"], refused["retryable"]) == (
            "not_allowed",
            "token",
            False,
        )
    assert call(*OWNERS_CALLS[name], token="owner").get("error", {}).get("code") != "not_allowed"


@pytest.mark.usefixtures("on_a_space")
def test_a_signed_in_owner_needs_no_token(lab: Workshop) -> None:
    service = lab.service(admin_token="owner")
    assert Api(service, lambda: "mallory").reload("")["error"]["code"] == "not_allowed"
    assert Api(service, lambda: "ada").reload("")["reloaded"] is True
