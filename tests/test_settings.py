from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.settings import ROOT, Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all settings out of the environment, and stand where there is no .env file."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_the_embedded_model() -> None:
    settings = load_settings()
    assert (settings.base_model, settings.bundle, settings.embedder) == ("", "", "")
    assert (settings.device, settings.quantize) == ("auto", "auto")
    assert settings.npc_dir == ROOT / "npc_configs"


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings()
    assert settings.data_dir == (tmp_path / "data").resolve()
    assert settings.model_cache == tmp_path / "home" / ".cache" / "persona-chat-engine"


def test_sessions_lie_in_sqlite_below_the_data_folder_unless_a_url_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "kept"))
    sqlite = load_settings().session_url
    assert str(sqlite) == f"sqlite:///{tmp_path / 'kept' / 'sessions.sqlite3'}"
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://db/minds")
    assert str(load_settings().session_url) == "postgresql+psycopg://db/minds"


def test_environment_sets_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "base_model": "org/base",
        "bundle": "org/bundle",
        "embedder": "org/embedder",
        "quantize": "4bit",
        "device": "cuda",
        "model_cache": "/a/cache",
        "data_dir": "/a/data",
        "database_url": "sqlite://",
        "npc_dir": "/a/npcs",
        "max_prompt_tokens": "2048",
        "max_text_chars": "500",
        "max_text_tokens": "200",
        "history_turns": "4",
        "queue_limit": "5",
        "batch_size": "8",
        "prefix_cache_mb": "64",
        "decode_weights": "int8",
        "prompt_products": "float",
        "admin_token": "owner",
        "owners": "ada, bob",
        "cpu_threads": "2",
    }
    assert set(values) == set(Settings.model_fields), "a setting is new; add it here"
    for name, value in values.items():
        monkeypatch.setenv(name.upper(), value)
    found = load_settings().model_dump(mode="json")
    assert {name: str(value) for name, value in found.items()} == values


def test_env_file_sets_what_the_environment_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("QUEUE_LIMIT=3\nHISTORY_TURNS=2\nUNRELATED=x\n")
    monkeypatch.setenv("HISTORY_TURNS", "9")
    settings = load_settings()
    assert (settings.queue_limit, settings.history_turns) == (3, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUANTIZE", "8bit"),
        ("DEVICE", "tpu"),
        ("MAX_PROMPT_TOKENS", "12"),
        ("MAX_PROMPT_TOKENS", "many"),
        ("MAX_TEXT_CHARS", "0"),
        ("MAX_TEXT_TOKENS", "-1"),
        ("HISTORY_TURNS", "41"),
        ("QUEUE_LIMIT", ""),
        ("CPU_THREADS", "1.5"),
    ],
)
def test_bad_value_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest) as caught:
        load_settings()
    assert caught.value.field == name
    assert caught.value.message.startswith(f"setting {name}: ")


def test_every_setting_says_what_it_is_for() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_settings_cannot_be_changed_later() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.queue_limit = 1  # type: ignore[misc]
