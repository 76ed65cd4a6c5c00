"""Who may reload: the owner, or anyone on one's own machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.api import Api
from engine.errors import NotAllowed
from engine.owner import check_owner
from tests.engines import Workshop


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


@pytest.fixture
def on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "ada/npc")


def test_everybody_may_on_ones_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    check_owner("", "")
    check_owner("whatever", "")


@pytest.mark.usefixtures("on_a_space")
def test_nobody_may_on_a_space_without_a_token_and_hears_what_to_set() -> None:
    for token in ("", "guess"):
        with pytest.raises(NotAllowed, match="set the secret ADMIN_TOKEN"):
            check_owner(token, "")


@pytest.mark.parametrize("token", ["", "owner ", "Owner", "주인"])
def test_a_wrong_token_is_refused_everywhere(token: str) -> None:
    with pytest.raises(NotAllowed, match="only the owner"):
        check_owner(token, "owner")
    check_owner("owner", "owner")


def test_reload_is_the_owners(lab: Workshop) -> None:
    api = Api(lab.service(admin_token="owner"))
    for token in ("", "guess"):
        refused = api.reload(token)["error"]
        assert (refused["code"], refused["field"], refused["retryable"]) == (
            "not_allowed",
            "token",
            False,
        )
    assert api.reload(None)["error"]["code"] == "not_allowed"  # type: ignore[arg-type]
    assert api.reload("owner")["reloaded"] is True
