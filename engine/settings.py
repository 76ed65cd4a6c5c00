"""All settings, read from environment variables (or a `.env` file); one place, each of them used.

Knows nothing of what the settings are for: no file is opened and no model loaded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from engine.errors import InvalidRequest
from engine.schema import first_complaint

if TYPE_CHECKING:
    from sqlalchemy import URL

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The program's settings; the name in capitals is the environment variable.

    Raises:
        pydantic.ValidationError: on a bad value (`load_settings` says it in plain words).
    """

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    base_model: str = Field("", description="Hub id or folder of the base model; empty: embedded.")
    bundle: str = Field("", description="Hub id or folder of the bundle; empty: heads/pretrained.")
    embedder: str = Field("", description="Hub id or folder of the embedder; empty: embedded.")
    quantize: Literal["auto", "none", "4bit"] = Field(
        "auto", description="4bit: NF4. auto: 4bit on a GPU where BASE_MODEL is set."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    model_cache: Path = Field(
        Path("~/.cache/persona-chat-engine"), description="Folder for fetched and converted models."
    )
    data_dir: Path = Field(Path("data"), description="Folder for sessions and the vector store.")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite under DATA_DIR.")
    npc_dir: Path = Field(ROOT / "npc_configs", description="Folder of the NPC files.")
    max_prompt_tokens: int = Field(1536, ge=256, le=32768, description="Longest prompt, in tokens.")
    max_text_chars: int = Field(1000, ge=1, le=20000, description="Longest utterance, characters.")
    max_text_tokens: int = Field(512, ge=1, le=8192, description="Longest utterance, in tokens.")
    history_turns: int = Field(6, ge=0, le=40, description="Exchanges that a session remembers.")
    queue_limit: int = Field(64, ge=1, le=10000, description="Calls that may wait for the model.")
    batch_size: int = Field(
        32, ge=1, le=512, description="Lines that are written together; 1: one turn at a time."
    )
    prefix_cache_mb: int = Field(
        256, ge=0, le=65536, description="Memory for prompt beginnings that turns share, in MB."
    )
    decode_weights: Literal["auto", "whole", "int8"] = Field(
        "auto", description="Form of the weights that lines are decoded with. auto: measured."
    )
    prompt_products: Literal["auto", "float", "int16"] = Field(
        "auto",
        description="Numbers that prompts are multiplied in. auto: int16 on a CPU in fp32 with AVX2.",
    )
    admin_token: str = Field(
        "",
        description="Who sends it may change what all share; empty: everybody, on a Space who signed "
        "in as owner.",
    )
    owners: str = Field(
        "",
        description="Hugging Face names, by comma, of who is owner once signed in; empty: who made "
        "the Space.",
    )
    cpu_threads: int = Field(0, ge=0, le=256, description="Threads for torch; 0: torch decides.")

    @field_validator("model_cache", "data_dir", "npc_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().resolve()

    @property
    def session_url(self) -> str | URL:
        """The SQLAlchemy URL of the session store."""
        if self.database_url:
            return self.database_url
        from sqlalchemy import URL  # slow to import, and reading the settings should not be

        # Built from its parts: in a string, a "?" or "%" in DATA_DIR would be read as syntax.
        return URL.create("sqlite", database=str(self.data_dir / "sessions.sqlite3"))


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InvalidRequest: naming the variable at fault.
    """
    try:
        return Settings()
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise InvalidRequest(f"setting {field.upper()}: {message}", field=field.upper()) from exc
