"""A bundle goes to the hub and `latest` follows, against a small stand-in of the hub on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import gradio_client
import pytest
from huggingface_hub import HfApi, constants, file_download

from engine.errors import NotReady
from engine.loader import bundle_stamp, find_bundle
from heads.bundle import BundleError, load_bundle, save_bundle
from tests.engines import Workshop
from tests.fakes import tiny_bundle, tiny_model
from training.__main__ import main
from training.publish import Plan, PublishError, make_plan, publish, reload_space

REPO = "ada/npc-heads"
TOKEN = "hf_of_a_test"
DAY = "2026-03-01"
BRANCH = f"feature/{DAY}-f1-0.85"
FIGURES = {"flag_macro_f1": 0.8512, "false_grants": 3, "per_flag": {}, "ece": float("nan")}
Files = dict[str, bytes]


class Hub:
    """What the stand-in holds: branches, the files of each commit, and the calls it has had.

    `refuse` maps "METHOD part-of-path" to the status that such a call gets instead of an answer.
    """

    def __init__(self) -> None:
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.calls: list[str] = []
        self.refuse: dict[str, int] = {}
        self.lost = False  # the answer to an overwrite, after it was done
        self.overwrites = True
        self.commit("main", {".gitattributes": b"", "adapter/adapter_config.json": b"{}"})

    def commit(self, branch: str, files: Files) -> str:
        oid = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> Files | None:
        return self.commits.get(self.branches.get(revision, revision))

    def apply(self, branch: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.commits[self.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return self.commit(branch, files)


class Handler(BaseHTTPRequestHandler):
    """The few calls of the hub that publishing and fetching make."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, data: Any, status: int = 200, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_call(self) -> None:
        path = urlparse(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{self.command} {unquote(path)}"
        self.hub.calls.append(call)
        for part, status in self.hub.refuse.items():
            if part in call:
                return self.answer({"error": "refused"}, status)
        if self.command != "GET" and self.command != "HEAD":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "no token"}, 403)
            return self.write(path, body)
        return self.read(path)

    do_GET = do_POST = do_HEAD = handle_call

    def read(self, path: str) -> None:
        hub = self.hub
        if match := re.fullmatch(rf"/{REPO}/resolve/(\w+)/(.+)", path):
            content = hub.commits[match[1]][unquote(match[2])]
            tag = hashlib.sha1(content).hexdigest()
            return self.answer(content, X_Repo_Commit=match[1], ETag=f'"{tag}"')
        kind, _, revision = path.removeprefix(f"/api/models/{REPO}/").partition("/")
        if not path.startswith(f"/api/models/{REPO}/"):
            return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
        if kind == "refs":
            rows = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in hub.branches.items()
            ]
            return self.answer({"branches": rows, "converts": [], "tags": []})
        revision = unquote(revision)
        files = hub.files(revision)
        if files is None:
            return self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        if kind == "revision":
            return self.answer({"id": REPO, "sha": hub.branches.get(revision, revision)})
        assert kind == "tree"
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": blob(data)}
            for name, data in files.items()
        ]
        return self.answer(entries)

    def write(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        kind, _, name = path.removeprefix(f"/api/models/{REPO}/").partition("/")
        branch = unquote(name)
        if kind == "preupload":
            held = hub.files(branch) or {}
            asked = [one["path"] for one in json.loads(body)["files"]]
            modes = [
                {
                    "path": one,
                    "uploadMode": "regular",
                    "shouldIgnore": False,
                    "oid": blob(held[one]) if one in held else None,
                }
                for one in asked
            ]
            return self.answer({"files": modes})
        if kind == "commit":
            oid = hub.apply(branch, [json.loads(line) for line in body.splitlines()])
            return self.answer({"commitUrl": f"/{REPO}/commit/{oid}", "commitOid": oid})
        assert kind == "branch"
        wish = json.loads(body)
        if branch in hub.branches and not (wish.get("overwrite") and hub.overwrites):
            return self.answer({"error": "exists"}, 409)
        start = wish.get("startingPoint", "main")
        hub.branches[branch] = hub.branches.get(start, start)
        return self.answer({}, 500 if hub.lost and wish.get("overwrite") else 200)


def blob(data: bytes) -> str:
    """Return git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def url(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the stand-in; the library asks it alone, with the test's token and cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def save(folder: Path, *, seed: int = 1, figures: Any = None, card: str = "# tiny\n") -> Path:
    bundle = tiny_bundle(*tiny_model("qwen2"), seed=seed)
    metrics = {"test": FIGURES if figures is None else figures}
    save_bundle(replace(bundle, info=replace(bundle.info, metrics=metrics), card=card), folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return save(tmp_path / "bundle")


@pytest.fixture
def plan(bundle: Path) -> Plan:
    return make_plan(bundle, REPO, day=DAY)


def held(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- the plan ------------------------------------------------------------------------------------


def test_branch_is_named_after_day_and_figure(bundle: Path) -> None:
    assert make_plan(bundle, REPO, day=DAY).branch == BRANCH
    counted = make_plan(bundle, REPO, metric="false_grants", day=DAY)
    assert counted.branch == f"feature/{DAY}-false-grants-3"
    assert re.fullmatch(r"feature/\d{4}-\d\d-\d\d-f1-0\.85", make_plan(bundle, REPO).branch)


@pytest.mark.parametrize("metric", ["accuracy", "per_flag", "ece"])
def test_figure_that_is_no_number_is_refused_with_the_ones_there_are(bundle, metric):
    with pytest.raises(PublishError, match=r"false_grants, flag_macro_f1.*was not touched"):
        make_plan(bundle, REPO, metric=metric)


@pytest.mark.parametrize("repo", ["heads", "ada/heads/more", "ada/heads@latest", "/tmp", ""])
def test_repository_must_be_an_id(bundle, repo):
    with pytest.raises(PublishError, match="ORG/NAME"):
        make_plan(bundle, repo)


def test_bundle_without_figures_or_card_or_parts_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="train it again"):
        make_plan(save(tmp_path / "a", figures={}), REPO)
    with pytest.raises(PublishError, match="no model card"):
        make_plan(save(tmp_path / "b", card=" \n"), REPO)
    (tmp_path / "b" / "heads.safetensors").unlink()
    with pytest.raises(BundleError):
        make_plan(tmp_path / "b", REPO)


# --- the whole way -------------------------------------------------------------------------------


def test_whole_publish_uploads_the_folder_and_moves_latest(url, hub, plan, bundle):
    old = hub.commit("latest", {"bundle.json": b"old"})
    main_before = hub.branches["main"]
    commit = publish(plan)
    assert hub.branches == {"main": main_before, "latest": commit, BRANCH: commit}
    assert hub.commits[commit] == {".gitattributes": b"", **held(bundle)}
    assert hub.commits[old] == {"bundle.json": b"old"}
    assert not any(call.startswith("DELETE") for call in hub.calls)


def test_first_publish_makes_latest(url, hub, plan):
    assert "latest" not in hub.branches
    commit = publish(plan)
    assert hub.branches["latest"] == commit


def test_publishing_the_same_twice_changes_nothing(url, hub, plan):
    assert publish(plan) == publish(plan) == hub.branches["latest"]


def test_endpoint_and_token_may_be_given(url, hub, plan, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    assert publish(plan, api=HfApi(endpoint=url, token=TOKEN)) == hub.branches["latest"]


def test_dry_run_tells_every_step_and_makes_no_call(url, hub, bundle, monkeypatch, caplog):
    monkeypatch.delenv("HF_TOKEN")
    arguments = ["publish", "--bundle", str(bundle), "--repo", REPO, "--space", "https://x.test"]
    with caplog.at_level(logging.INFO, "training.publish"):
        assert main([*arguments, "--dry-run"]) == 0
    assert hub.calls == []
    told = caplog.text
    for words in ("f1-0.85", "heads.safetensors", "README.md", "move the branch latest", "x.test"):
        assert words in told


def test_command_line_publishes(url, hub, bundle):
    assert main(["publish", "--bundle", str(bundle), "--repo", REPO]) == 0
    assert load_bundle(bundle).card.encode() == hub.commits[hub.branches["latest"]]["README.md"]


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        ("GET /api/models/ada/npc-heads/refs", 503, "try again later"),
        (f"POST /api/models/{REPO}/branch/feature", 403, "may not write"),
        (f"POST /api/models/{REPO}/preupload", 403, "may not write"),
        (f"POST /api/models/{REPO}/commit", 400, "refused"),
        (f"POST /api/models/{REPO}/commit", 403, "may not write"),
        (f"POST /api/models/{REPO}/branch/latest", 403, "may not write"),
        (f"POST /api/models/{REPO}/branch/latest", 500, "try again later"),
    ],
)
def test_failure_half_way_leaves_latest_where_it_was(url, hub, plan, call, status, says):
    old = hub.commit("latest", {"bundle.json": b"old"})
    hub.refuse[call] = status
    with pytest.raises(PublishError, match=says) as told:
        publish(plan)
    assert hub.branches["latest"] == old
    state = "did not move" if call.endswith("latest") else "was not touched"
    assert state in str(told.value)
    assert call.endswith("refs") or old in str(told.value)
    hub.refuse.clear()
    assert publish(plan) == hub.branches["latest"], "and running it again mends it"


def test_hub_that_cannot_overwrite_keeps_latest_and_says_so(url, hub, plan):
    old = hub.commit("latest", {})
    hub.overwrites = False
    with pytest.raises(PublishError, match=rf"\(409\).*did not move \(it is at {old}\)"):
        publish(plan)
    assert hub.branches["latest"] == old


def test_lost_answer_to_the_move_is_looked_up(url, hub, plan):
    hub.commit("latest", {})
    hub.lost = True
    assert publish(plan) == hub.branches["latest"]


def test_branch_that_someone_else_moved_meanwhile_is_left_alone(url, hub, plan, monkeypatch):
    hub.commit("latest", {})
    theirs: list[str] = []
    apply = hub.apply

    def both(branch: str, lines: list[dict[str, Any]]) -> str:
        theirs.append(hub.commit("latest", {"bundle.json": b"theirs"}))
        return apply(branch, lines)

    monkeypatch.setattr(hub, "apply", both)
    with pytest.raises(PublishError, match="someone else moved"):
        publish(plan)
    assert hub.branches["latest"] == theirs[0]


def test_no_token_is_told_before_any_call(url, hub, plan, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match=r"no token.*HF_TOKEN.*was not touched"):
        publish(plan)
    assert hub.calls == []


def test_token_that_the_hub_does_not_know_is_told(url, hub, plan):
    hub.refuse["refs"] = 401
    with pytest.raises(PublishError, match="token"):
        publish(plan)


def test_repository_that_is_not_there_is_told(url, plan):
    with pytest.raises(PublishError, match=r"no model 'ada/none'.*hf repo create"):
        publish(replace(plan, repo="ada/none"))


def test_hub_that_cannot_be_reached_is_told(plan):
    with pytest.raises(PublishError, match=r"cannot be reached.*was not touched"):
        publish(plan, api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))


# --- the Space -----------------------------------------------------------------------------------


class FakeClient:
    """Stands in for gradio_client's, which would ask a Space."""

    answer: ClassVar[Any] = {"reloaded": True, "bundle_changed": True}
    made: ClassVar[list[tuple[str, object]]]
    sent: ClassVar[list[dict[str, str]]]

    def __init__(self, src: str, token: object, **_: Any) -> None:
        self.made.append((src, token))

    def predict(self, api_name: str, **given: str) -> Any:
        assert api_name == "/reload"
        self.sent.append(given)
        return self.answer


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    fake = type("Fake", (FakeClient,), {"made": [], "sent": []})
    monkeypatch.setattr(gradio_client, "Client", fake)
    return fake


def test_space_reloads_after_latest_has_moved(url, hub, plan, space):
    publish(replace(plan, space="https://ada-npc.hf.space"))
    assert space.made == [("https://ada-npc.hf.space", TOKEN)]


@pytest.mark.parametrize(
    "address", ["https://ada.example", "http://ada.hf.space", "https://nothuggingface.co"]
)
def test_token_goes_to_spaces_of_the_hub_alone(url, space, address):
    reload_space(address, "")
    assert space.made == [(address, False)]


def test_owner_token_goes_along_but_not_over_an_open_line(url, space, monkeypatch):
    reload_space("ada/npc", "")
    monkeypatch.setenv("ADMIN_TOKEN", "owner")
    for address in (
        "ada/npc",
        "https://ada.example",
        "http://127.0.0.1:7860",
        "http://ada.example",
    ):
        reload_space(address, "")
    mine = {"token": "owner"}
    assert space.sent == [{}, mine, mine, mine, {}]


def test_space_that_does_not_answer_leaves_latest_moved_and_says_so(url, hub, plan):
    with pytest.raises(PublishError, match=r"cannot be reached.*is moved") as told:
        publish(replace(plan, space="http://127.0.0.1:9"))
    assert hub.branches["latest"] in str(told.value)


def test_space_that_refuses_the_bundle_is_told(url, hub, plan, space):
    space.answer = {"error": {"message": "made for another base"}}
    with pytest.raises(PublishError, match=r"another base.*is moved"):
        publish(replace(plan, space="ada/npc"))


def test_space_that_serves_something_else_is_told(url, space, caplog):
    space.answer = {"reloaded": True, "bundle_changed": False}
    reload_space("ada/npc", "")
    assert "BUNDLE" in caplog.text


# --- the engine's side ---------------------------------------------------------------------------


def test_engine_serves_latest_pinned_to_its_commit_and_reload_follows_it(
    url, hub, plan, tmp_path, one_thread
):
    first = publish(plan)
    with Workshop(tmp_path / "lab") as lab:
        service = lab.service(bundle=f"{REPO}@latest")
        assert service.status()["reason"] is None
        assert service.status()["bundle_commit"] == first
        second = publish(make_plan(save(tmp_path / "next", seed=2), REPO, day="2026-03-02"))
        assert second != first
        assert service.status()["bundle_commit"] == first, "pinned until someone asks"
        assert service.reload()["bundle_changed"] is True
        assert service.status()["bundle_commit"] == second
        assert service.reload()["bundle_changed"] is False
        hub.refuse["/api/models"] = 503
        assert service.reload()["bundle_changed"] is False, "a hub that is down changes nothing"


def test_older_bundle_is_reached_by_its_branch_or_commit(url, hub, plan):
    commit = publish(plan)
    assert find_bundle(f"{REPO}@{BRANCH}").commit == commit
    assert find_bundle(f"{REPO}@{commit}").commit == commit
    assert bundle_stamp(f"{REPO}@{BRANCH}") == bundle_stamp(f"{REPO}@{commit}")


def test_revision_that_is_not_there_is_named(url, hub):
    with pytest.raises(NotReady, match="ada/npc-heads@latest"):
        bundle_stamp(f"{REPO}@latest")


def test_folder_has_no_commit(bundle, tmp_path, one_thread):
    assert find_bundle(str(bundle)).commit == ""
    with Workshop(tmp_path / "lab") as lab:
        assert lab.service().status()["bundle_commit"] is None
