"""`python -m training publish`: a bundle goes to the hub, and `latest` follows when it is whole there.

    1  read the hub's branches            is the repository there; where does `latest` stand
    2  create a branch for the bundle     feature/<YYYY-MM-DD>-<metric>
    3  upload to it                       the folder as it is, model card included
    4  move `latest` to that commit       one request
    5  have a Space read it (--space)     its `/reload`

Before that the bundle is loaded strictly. Up to step 4 nothing touches `latest`, so a failure
half-way leaves what a running engine reads. Step 4 is the hub's "create branch" with `overwrite`:
the server repoints an existing branch in one request. Deleting and creating it again would leave a
moment without `latest`, `create_branch(exist_ok=True)` leaves an existing branch where it is, and a
second commit on `latest` would have another id than the bundle's branch. The Python client has no
argument for `overwrite`, so the request is made here with the client's own session and headers.
Source: the hub's OpenAPI, `POST /api/models/{namespace}/{repo}/branch/{rev}`.

Knows nothing of how a bundle is trained or served.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, errors, get_session, get_token
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from heads.bundle import Bundle, load_bundle

logger = logging.getLogger(__name__)

LATEST = "latest"
METRIC = "flag_macro_f1"
_UNTOUCHED = f"'{LATEST}' was not touched"

T = TypeVar("T")


class PublishError(ValueError):
    """A bundle that was not published whole; says what to do and where `latest` stands."""


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Args:
        folder: of the bundle; all of it is uploaded.
        repo: model repository of the hub, "org/name".
        branch: that the folder is uploaded to.
        space: URL or hub id of a Space to reload afterwards; "" for none.
    """

    folder: Path
    repo: str
    branch: str
    space: str = ""

    def steps(self) -> list[str]:
        """Return the steps in order, a sentence each."""
        names = sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        )
        steps = [
            f"read the branches of {self.repo}",
            f"create the branch {self.branch}",
            f"upload {self.folder} to it: {', '.join(names)}",
            f"move the branch {LATEST} to that commit",
        ]
        return [*steps, f"call /reload of {self.space}"] if self.space else steps


def make_plan(
    folder: Path, repo: str, *, metric: str = METRIC, space: str = "", day: str = ""
) -> Plan:
    """Load the bundle strictly and say what would be done with it; nothing leaves the machine.

    Args:
        folder: of the bundle.
        repo: "org/name".
        metric: the figure of the bundle's test part that the branch is named after.
        space: URL or hub id of a Space that serves `latest`; "" for none.
        day: YYYY-MM-DD; default: today, in UTC.

    Raises:
        BundleError: the bundle would not load.
        PublishError: no repository id, no model card, or no such figure.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo):
        raise PublishError(f"--repo must be ORG/NAME, not {repo!r}; {_UNTOUCHED}")
    bundle = load_bundle(folder)
    if not bundle.card.strip():
        raise PublishError(f"{folder} has no model card (README.md); train it again; {_UNTOUCHED}")
    day = day or datetime.now(timezone.utc).date().isoformat()
    return Plan(folder, repo, f"feature/{day}-{_figure(bundle, metric)}", space)


def publish(plan: Plan, *, dry_run: bool = False, api: HfApi | None = None) -> str:
    """Carry the plan out and return the commit that `latest` then points to ("" in a dry run).

    Args:
        plan: of `make_plan`.
        dry_run: tell the steps and do none.
        api: of the hub; default: endpoint and token as the library finds them.

    Raises:
        PublishError: no token, no rights, no repository, no network, or a Space that does not answer.
    """
    if dry_run:
        for number, step in enumerate(plan.steps(), 1):
            logger.info("would: %d. %s", number, step)
        return ""
    api = _signed_in(api or HfApi())
    before = _told(plan, _UNTOUCHED, lambda: _latest(api, plan.repo))
    commit = _told(plan, f"{_UNTOUCHED} ({_at(before)})", lambda: _upload(api, plan))
    logger.info("%s@%s is at %s", plan.repo, plan.branch, commit)
    _move(api, plan, before, commit)
    logger.info("%s@%s: %s, before: %s", plan.repo, LATEST, _at(commit), _at(before))
    if plan.space:
        reload_space(plan.space, f"'{LATEST}' is moved ({_at(commit)})")
    return commit


def reload_space(space: str, state: str) -> Mapping[str, Any]:
    """Call the Space's `/reload` and return its answer.

    The hub's token goes only to Spaces of the hub: any other address has no use for one. What stands
    in ADMIN_TOKEN goes along, but never over a line that others can read.

    Args:
        space: URL or hub id.
        state: of `latest`, for the message.

    Raises:
        PublishError: the Space cannot be reached, or keeps what it served before.
    """
    from gradio_client import Client  # slow, and only --space needs it

    token: Any = get_token() if _of_the_hub(space) else None
    try:
        client = Client(space, token=token or False, verbose=False, analytics_enabled=False)
        owner = {"token": admin} if (admin := _admin_token(space)) else {}
        answer: Any = client.predict(api_name="/reload", **owner)
    except Exception as exc:  # the client lets errors of several libraries through
        raise PublishError(
            f"the Space {space} cannot be reached ({exc}): see whether it runs, then restart it or "
            f"call its /reload; {state}"
        ) from exc
    if not isinstance(answer, Mapping) or "error" in answer:
        raise PublishError(f"the Space {space} keeps what it served before: {answer}; {state}")
    if not answer.get("bundle_changed"):
        logger.warning("%s serves the bundle that it served before: what is its BUNDLE?", space)
    return answer


def _admin_token(space: str) -> str:
    open_line = space.startswith("http://") and urlsplit(space).hostname not in (
        "127.0.0.1",
        "localhost",
    )
    return "" if open_line else os.environ.get("ADMIN_TOKEN", "")


def _of_the_hub(space: str) -> bool:
    address = re.match(r"https://([\w.-]+\.hf\.space|huggingface\.co)(/|$)", space)
    return "://" not in space or address is not None


def _figure(bundle: Bundle, metric: str) -> str:
    figures = bundle.info.metrics.get("test")
    numbers = {
        name: value
        for name, value in (figures if isinstance(figures, Mapping) else {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    if metric not in numbers:
        raise PublishError(
            f"the bundle has no figure {metric!r} of its test part; --metric may be: "
            f"{', '.join(sorted(numbers)) or 'none, train it again'}; {_UNTOUCHED}"
        )
    value = numbers[metric]
    name = "f1" if metric == METRIC else re.sub(r"[^A-Za-z0-9]+", "-", metric).strip("-")
    return f"{name}-{value}" if isinstance(value, int) else f"{name}-{value:.2f}"


def _signed_in(api: HfApi) -> HfApi:
    """Return an api that sends its token explicitly; the library may be told not to by itself."""
    token = api.token or get_token()
    if not isinstance(token, str):
        raise PublishError(
            "there is no token for the hub: set HF_TOKEN to one that may write to the repository, "
            f"or log in with 'hf auth login'; {_UNTOUCHED}"
        )
    return HfApi(endpoint=api.endpoint, token=token)


def _latest(api: HfApi, repo: str) -> str | None:
    """Return the commit that `latest` points to, or None where there is no such branch."""
    branches = api.list_repo_refs(repo).branches
    return next((one.target_commit for one in branches if one.name == LATEST), None)


def _upload(api: HfApi, plan: Plan) -> str:
    """Make the branch hold exactly the folder; an adapter of an older bundle must not stay there."""
    api.create_branch(plan.repo, branch=plan.branch, exist_ok=True)
    return api.upload_folder(
        repo_id=plan.repo,
        folder_path=plan.folder,
        revision=plan.branch,
        delete_patterns=["*"],
        commit_message=f"Publish {plan.branch}",
    ).oid


def _move(api: HfApi, plan: Plan, before: str | None, commit: str) -> None:
    """Repoint `latest`, then read it back: an answer may be lost after the hub has done it."""
    kept = f"the bundle is on {plan.branch}; '{LATEST}' did not move"
    now = _told(plan, f"{kept} ({_at(before)})", lambda: _latest(api, plan.repo))
    if now != before:
        raise PublishError(f"someone else moved '{LATEST}' meanwhile ({_at(now)}); run it again")
    failure = None
    try:
        _overwrite(api, plan.repo, commit)
    except Exception as exc:  # told below, once it is known where the branch stands
        failure = exc
    unknown = f"'{LATEST}' is at {commit} or {before or 'nothing'}, nothing between; run it again"
    now = _told(plan, unknown, lambda: _latest(api, plan.repo))
    if now != commit:
        why = _reason(failure, plan.repo) if failure else "this hub does not overwrite branches"
        raise PublishError(f"{why}; {kept} ({_at(now)})") from failure


def _overwrite(api: HfApi, repo: str, commit: str) -> None:
    response = get_session().post(
        f"{api.endpoint}/api/models/{repo}/branch/{LATEST}",
        headers=build_hf_headers(token=api.token),
        json={"startingPoint": commit, "overwrite": True},
    )
    hf_raise_for_status(response)


def _at(commit: str | None) -> str:
    return f"it is at {commit}" if commit else "there is none yet"


def _told(plan: Plan, state: str, step: Callable[[], T]) -> T:
    """Do a step; what goes wrong is told in plain words, with the state that `latest` is in."""
    try:
        return step()
    except Exception as exc:  # the hub's client lets errors of several HTTP libraries through
        raise PublishError(f"{_reason(exc, plan.repo)}; {state}") from exc


def _reason(exc: Exception, repo: str) -> str:
    status = exc.response.status_code if isinstance(exc, errors.HfHubHTTPError) else 0
    if status == 403:
        return f"the token may not write to {repo}: use one that may, or ask its owner"
    if isinstance(exc, errors.RepositoryNotFoundError):
        return (
            f"the hub has no model {repo!r}, or the token may not see it: check the spelling, or "
            f"make it with 'hf repo create {repo}'"
        )
    if status == 401:
        return "the hub does not accept the token: set HF_TOKEN anew"
    said = " ".join(str(exc).split())
    if status:
        return f"the hub refused ({status}), try again later: {said}"
    if isinstance(exc, ValueError):
        return f"the bundle cannot be uploaded: {said}"
    return f"the hub cannot be reached ({said}): check the connection and run it again"
