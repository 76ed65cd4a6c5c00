"""What the README promises holds: front matter, settings, figures, picture, commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine.settings import Settings
from training.card import figures_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def front_matter() -> dict[str, str]:
    head = README.split("---\n")[1]
    return dict(re.findall(r"^(\w+): *\"?(.*?)\"?$", head, flags=re.MULTILINE))


def test_front_matter_makes_a_gradio_space() -> None:
    head = front_matter()
    assert head["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", head["sdk_version"])
    assert (ROOT / head["app_file"]).is_file()
    assert head["license"] == "mit"
    assert len(head["short_description"]) <= 60
    assert head["python_version"] in ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_stands_in_the_table_with_its_description(name: str) -> None:
    field = Settings.model_fields[name]
    row = re.search(rf"^\| `{name.upper()}` \| (.*) \| (.*) \|$", README, flags=re.MULTILINE)
    assert row is not None
    assert row.group(2) == field.description


def test_figures_are_those_of_the_shipped_bundle() -> None:
    manifest = json.loads((ROOT / "heads/pretrained/bundle.json").read_text(encoding="utf-8"))
    for part in ("test", "unseen"):
        assert figures_table(manifest["metrics"], part).strip() in README, part


def test_every_file_and_picture_that_is_named_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"(?:^| {2,})([a-z_]+(?:\.py|/))(?= )", README, flags=re.MULTILINE):
        assert any((ROOT / folder / name).exists() for folder in ("", "engine")), name


def test_the_two_commands_are_there_as_they_are_run() -> None:
    assert "pip install -r requirements.txt && python app.py" in README
    assert "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest" in README


def test_the_example_answer_is_json() -> None:
    answer = json.loads(README.split("```json\n")[1].split("```")[0])
    assert answer["meta"]["actions"][0]["value"] == "gold_necklace"


KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


def _headings(text: str) -> list[str]:
    """Return the level of every heading, code left out."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(#+) ", prose, flags=re.MULTILINE)


def _code(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_korean_readme_keeps_step() -> None:
    assert _headings(KOREAN) == _headings(README)
    for language in ("bash", "python"):
        assert _code(KOREAN, language) == _code(README, language)
    for first in (r"^\| (`/.*?`) \|", r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| (?:[^|]*) \|"):
        mine, theirs = (re.findall(first, text, flags=re.MULTILINE) for text in (KOREAN, README))
        assert mine == theirs
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", KOREAN):
        assert (ROOT / target).exists(), target


def test_links_into_the_english_readme_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    anchors = {title.lower().replace(" ", "-") for title in titles}
    for anchor in re.findall(r"README\.md#([^)]+)\)", KOREAN):
        assert anchor in anchors
