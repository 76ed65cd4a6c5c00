"""The scene and sampling fields as components: built once, filled from a session, read as values.

What their values mean is `engine.ui.scene`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from engine.schema import GenParams
from engine.ui import scene
from engine.ui.words import I18N

Updates = dict[Any, Any]


class SceneFields:
    """The fields of the Scene panel; to be made where they shall stand, inside a `gr.Blocks`."""

    def __init__(self) -> None:
        gr.Markdown(I18N("scene_info"), elem_classes="pc-hint")
        self.preset = gr.Dropdown(
            [], value=None, label=I18N("preset"), info=I18N("preset_info"), elem_id="pc-preset"
        )
        self.by_name: dict[str, Any] = {
            "quest_stage": gr.Dropdown([], label=I18N("quest_stage"), elem_id="pc-stage"),
        }
        with gr.Row(elem_classes="pc-pair"):
            for name in ("trust", "relationship"):
                self.by_name[name] = gr.Slider(
                    -1, 1, value=0, step=0.001, label=I18N(name), elem_id=f"pc-{name}", min_width=130
                )
        for name in ("items", "actions"):
            self.by_name[name] = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                label=I18N(name),
                elem_id=f"pc-{name}",
            )
        self.by_name["game_state"] = gr.Textbox(
            lines=2,
            max_lines=8,
            label=I18N("game_state"),
            info=I18N("game_state_info"),
            placeholder="door_open = true",
            elem_id="pc-game-state",
        )
        self.game_state_error = gr.HTML(elem_id="pc-game-state-error", padding=False)
        self._texts()
        self._sampling()
        self.will_send = gr.HTML(elem_id="pc-will-send", padding=False)

    def _texts(self) -> None:
        with gr.Row(elem_classes="pc-pair"):
            self.by_name["location"] = gr.Textbox(
                label=I18N("location"), max_length=64, elem_id="pc-location", min_width=130
            )
            self.by_name["npc_mood"] = gr.Dropdown(
                [],
                allow_custom_value=True,
                label=I18N("npc_mood"),
                elem_id="pc-mood",
                min_width=130,
            )
        self.by_name["player_reputation"] = gr.Textbox(
            label=I18N("player_reputation"), max_length=64, elem_id="pc-reputation"
        )

    def _sampling(self) -> None:
        default = GenParams()
        with gr.Accordion(I18N("sampling"), open=False):
            self.sampling: dict[str, Any] = {
                "temperature": gr.Slider(
                    0,
                    2,
                    value=default.temperature,
                    step=0.05,
                    label=I18N("temperature"),
                    info=I18N("temperature_info"),
                ),
                "top_p": gr.Slider(
                    0.05, 1, value=default.top_p, step=0.05, label=I18N("top_p")
                ),
                "max_new_tokens": gr.Slider(
                    1, 256, value=default.max_new_tokens, step=1, label=I18N("max_new_tokens")
                ),
                "seed": gr.Number(
                    value=None,
                    precision=0,
                    minimum=0,
                    maximum=2**31 - 1,
                    label=I18N("seed"),
                    info=I18N("seed_info"),
                ),
            }

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `values` takes, in order."""
        return [*(self.by_name[name] for name in scene.FIELDS), *self.sampling.values()]

    @property
    def outputs(self) -> list[Any]:
        """The components that `filled` speaks of."""
        return [*self.by_name.values(), self.game_state_error, self.will_send]

    @staticmethod
    def values(given: Sequence[Any]) -> tuple[scene.Values, scene.Values]:
        """Split the values of `inputs` into scene fields and sampling, by name."""
        count = len(scene.FIELDS)
        fields = dict(zip(scene.FIELDS, given[:count], strict=True))
        return fields, dict(zip(scene.SAMPLING, given[count:], strict=True))

    def filled(self, values: Mapping[str, Any], choices: scene.Choices) -> Updates:
        """Return the updates that make the fields show `values` and offer `choices`."""
        offered = {
            "quest_stage": list(choices.stages),
            "items": _with(choices.items, values["items"]),
            "actions": _with(choices.actions, values["actions"]),
            "npc_mood": _with(choices.moods, [values["npc_mood"]]),
        }
        updates: Updates = {
            field: (
                gr.update(choices=offered[name], value=values[name])
                if name in offered
                else gr.update(value=values[name])
            )
            for name, field in self.by_name.items()
        }
        return {**updates, self.game_state_error: ""}


def _with(choices: Sequence[str], values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*choices, *values]))
