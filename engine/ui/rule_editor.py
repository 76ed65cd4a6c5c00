"""The rule editor's components: one flag of one stage at a time, its conditions from pick lists.

What its values mean in a file is `engine.ui.rule_form`'s to say; who writes the file, the NPCs tab's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr

from engine.errors import InvalidRequest
from engine.ui.fields import Updates
from engine.ui.rule_form import (
    FIELDS,
    Offered,
    description,
    first_flag,
    flag_choices,
    offered,
    rule_values,
    stages_of,
    with_rule,
    without_rule,
)
from engine.ui.words import label

Json = dict[str, Any]


class RuleEditor:
    """The components; to be made where they shall stand, inside a `gr.Blocks`.

    Args:
        game: gives the NPC files whose words the pick lists offer.
    """

    def __init__(self, game: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._game = game
        gr.Markdown(label("rules_intro"), elem_classes="pc-hint")
        with gr.Row(elem_classes="pc-pair"):
            self.stage = gr.Dropdown(
                [], label=label("r_stage"), allow_custom_value=True, elem_id="pc-ru-stage"
            )
            self.flag = gr.Dropdown([], label=label("r_flag"), elem_id="pc-ru-flag")
        self.about = gr.Textbox(
            label=label("r_description"), lines=2, max_lines=6, elem_id="pc-ru-about"
        )
        self.by_name: dict[str, Any] = {}
        self.by_name["text"] = gr.Textbox(
            label=label("r_text"), lines=1, max_lines=3, elem_id="pc-ru-text"
        )
        self._value_and_bounds()
        self._pick_lists()
        self.by_name["meanings"] = gr.Textbox(
            label=label("r_meanings"), lines=2, max_lines=6, elem_id="pc-ru-meanings"
        )
        with gr.Row(elem_classes="pc-pair"):
            self.by_name["similarity"] = gr.Slider(
                0, 1, 0.4, step=0.01, label=label("r_similarity"), elem_id="pc-ru-near", buttons=[]
            )
            self.by_name["once"] = gr.Checkbox(label=label("r_once"), elem_id="pc-ru-once")
        self.remove = gr.Button(label("r_remove"), size="sm", elem_id="pc-ru-remove")

    def _value_and_bounds(self) -> None:
        with gr.Row(elem_classes="pc-pair"):
            self.by_name["value"] = gr.Dropdown(
                [], label=label("r_value"), allow_custom_value=True, elem_id="pc-ru-value"
            )
            for name in ("min_trust", "min_relationship"):
                self.by_name[name] = gr.Number(
                    value=None,
                    minimum=-1,
                    maximum=1,
                    step=0.05,
                    label=label(f"r_{name}"),
                    elem_id=f"pc-ru-{name.replace('_', '-')}",
                )

    def _pick_lists(self) -> None:
        for names in (("items", "actions"), ("game_state", "keywords")):
            with gr.Row(elem_classes="pc-pair"):
                for name in names:
                    word = "r_facts" if name == "game_state" else f"r_{name}"
                    self.by_name[name] = gr.Dropdown(
                        [],
                        value=[],
                        multiselect=True,
                        allow_custom_value=True,
                        label=label(word),
                        elem_id=f"pc-ru-{name.replace('_', '-')}",
                    )

    @property
    def place(self) -> list[Any]:
        """The components that say which rule is looked at."""
        return [self.stage, self.flag]

    @property
    def said(self) -> list[Any]:
        """The components that say what holds there, in the order that `written` takes."""
        return [self.about, *(self.by_name[name] for name in FIELDS)]

    @property
    def all(self) -> list[Any]:
        """Every component that `filled` speaks of."""
        return [*self.place, *self.said]

    def filled(self, data: Mapping[str, Any], stage: str | None, flag: str | None) -> Updates:
        """Show a rule of the file; another stage, or flag, where it has none of that name."""
        stages = stages_of(data)
        if stage not in stages:
            stage = next(iter(stages), None)
            flag = None
        flag = flag or first_flag(data, stage)
        return {
            self.stage: gr.update(choices=stages, value=stage),
            **self._flag_filled(data, stage, flag),
        }

    def stage_filled(self, data: Mapping[str, Any], stage: str, flag: str | None) -> Updates:
        """Show another stage, which may be one that the file has not yet."""
        return self._flag_filled(data, stage, flag if stage not in stages_of(data) else None)

    def _flag_filled(self, data: Mapping[str, Any], stage: str | None, flag: str | None) -> Updates:
        flag = flag or first_flag(data, stage)
        return {
            self.flag: gr.update(choices=flag_choices(data, stage), value=flag),
            self.about: description(data, stage),
            **self.rule_filled(data, stage, flag),
        }

    def rule_filled(self, data: Mapping[str, Any], stage: str | None, flag: str | None) -> Updates:
        """Show another flag of the stage."""
        values, lists = rule_values(data, stage, flag), offered([data, *self._game()])
        updates: Updates = {
            self.by_name[name]: value
            for name, value in values.items()
            if name not in _listed(lists)
        }
        for name, choices in _listed(lists).items():
            every = list(dict.fromkeys([*values[name], *choices]))
            updates[self.by_name[name]] = gr.update(choices=every, value=values[name])
        stages = [one for one in stages_of(data) if one != "any"]
        updates[self.by_name["value"]] = gr.update(
            choices=stages if flag == "quest_stage_change" else list(lists.items),
            value=values["value"],
        )
        return updates

    def written(
        self, data: Mapping[str, Any], stage: str, flag: str, given: tuple[Any, ...]
    ) -> Json:
        """Return the file with the rule as the components say.

        Raises:
            InvalidRequest: something in it cannot be read, or no stage is named.
        """
        if not stage or not flag:
            raise InvalidRequest("name a stage and a flag first", field="stages")
        about, *values = given
        return with_rule(data, stage, flag, about or "", dict(zip(FIELDS, values, strict=True)))

    def marked(self, data: Mapping[str, Any], stage: str) -> Updates:
        """Show which flags the stage has now, and that it is there."""
        return {
            self.stage: gr.update(choices=stages_of(data)),
            self.flag: gr.update(choices=flag_choices(data, stage)),
        }

    def without(self, data: Mapping[str, Any], stage: str, flag: str) -> Json:
        """Return the file without the rule that is looked at."""
        return without_rule(data, stage or "", flag or "")


def _listed(lists: Offered) -> dict[str, tuple[str, ...]]:
    """Return what each of the lists that take several offers."""
    return {
        "items": lists.items,
        "actions": lists.actions,
        "game_state": lists.facts,
        "keywords": lists.keywords,
    }
