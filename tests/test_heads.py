"""Heads: pooling at <STATE>, the three outputs, and the bundle's strictness."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.prompt import MARKERS
from engine.schema import FLAGS
from heads import bundle as bundles
from heads.bundle import (
    ADAPTER,
    CARD,
    HEADS,
    MANIFEST,
    MARKER_ROWS,
    BadFaith,
    Bundle,
    BundleError,
    Platt,
    check_bundle,
    load_bundle,
    save_bundle,
)
from heads.evidence import Bearing, Evidence, Named, claims_of, claims_size, evidence_size
from heads.modules import StateHeads
from heads.pooling import pool_state, state_positions
from heads.spec import FINAL_NORM, HeadSpec
from tests.fakes import HIDDEN, tiny_bundle, tiny_model

STATE_ID = 9

# --- pooling -------------------------------------------------------------------------------------


def test_state_is_found_by_id_wherever_it_stands():
    ids_BT = torch.tensor([[9, 1, 2, 3], [1, 2, 3, 9], [0, 0, 9, 1]])
    assert state_positions(ids_BT, STATE_ID).tolist() == [0, 3, 2]
    hidden_BTH = torch.arange(12.0).reshape(3, 4, 1)
    assert pool_state(hidden_BTH, ids_BT, STATE_ID).tolist() == [[0.0], [7.0], [10.0]]


@pytest.mark.parametrize("ids", [[[1, 2]], [[9, 9]], [[9, 1], [1, 2]]])
def test_row_without_exactly_one_state_is_refused(ids):
    with pytest.raises(ValueError, match="exactly one <STATE>"):
        state_positions(torch.tensor(ids), STATE_ID)


def _claiming() -> StateHeads:
    """Return heads whose claims alone move the acts: "lie" where facts are absent, else "help"."""
    heads = StateHeads(HeadSpec(("a", "b"), 3, acts=("lie", "help", "neutral"), claims=True))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        heads.asks.weight[0, 0] = heads.asks.weight[1, 1] = 20.0
        heads.asks.bias.fill_(-10.0)
        heads.near.weight.copy_(torch.tensor([[1.0, 20.0, 0.0]]))
        heads.claim.weight[0, 2:4] = 9.0  # absent, of a and b
        heads.claim.weight[1, 4:6] = 9.0  # present
        heads.claim.weight[2, 0:2] = 4.0  # asked for
        heads.set_worth(torch.tensor([[-0.1, -0.1], [0.1, 0.1], [0.0, 0.0]]))
    return heads


def _evidence(*told: dict[str, Bearing]) -> torch.Tensor:
    return torch.tensor([Evidence(one).numbers(("a", "b")) for one in told])


def test_the_same_words_are_help_or_a_lie_by_the_facts():
    heads = _claiming()
    asks_a_BH = torch.tensor([[1.0, 0.0, 0.0]] * 4)
    facts = ((True, False), (False, True), (None, False), (None, None))
    told = [{"a": Bearing(one), "b": Bearing(other)} for one, other in facts]
    read = heads(asks_a_BH, evidence_BE=_evidence(*told))
    assert read.act_BA.argmax(dim=-1).tolist() == [1, 0, 2, 2]
    assert read.delta_B2[0, 0] > 0.09
    assert read.delta_B2[1, 0] < -0.09
    nothing = heads(torch.zeros(1, 3), evidence_BE=_evidence(told[1]))
    assert nothing.act_BA.std() < 1e-3  # nothing is asked for, so nothing is claimed


def test_words_near_a_flags_rule_ask_for_it_and_a_flag_of_another_stage_is_not_asked_for():
    heads = _claiming()
    near = {"b": Bearing(facts=False, rule=1.0)}
    read = heads(torch.zeros(1, 3), evidence_BE=_evidence(near))
    assert read.act_BA.argmax(dim=-1).tolist() == [0]
    asks_a_BH = torch.tensor([[1.0, 0.0, 0.0]])
    elsewhere = heads(asks_a_BH, evidence_BE=_evidence({"b": Bearing(facts=False)}))
    assert elsewhere.act_BA.std() < 1e-3


def test_without_evidence_nothing_is_claimed():
    heads, hidden_BH = _claiming(), torch.tensor([[1.0, 1.0, 0.0]])
    assert torch.equal(heads(hidden_BH).act_BA, heads(hidden_BH, evidence_BE=_evidence({})).act_BA)
    assert heads(hidden_BH).act_BA.std() < 1e-3


def test_what_is_named_is_the_last_that_the_claim_head_reads():
    named = Named(near_present=0.1, near_absent=0.2, said_present=0.3, said_absent=0.4)
    evidence = Evidence({"b": Bearing(facts=True, rule=0.5, value=0.6)}, named)
    numbers = evidence.numbers(("a", "b"))
    assert numbers == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.6, 0.1, 0.2, 0.3, 0.4]
    assert len(numbers) == evidence_size(2)
    read = claims_of(torch.zeros(1, 2), torch.tensor([numbers]), torch.zeros(3), torch.zeros(1))
    assert read.shape == (1, claims_size(2))
    assert read[0].tolist() == pytest.approx(
        [0.0, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.1, 0.2, 0.3, 0.4]
    )


def test_claims_are_kept_in_a_bundle_and_need_acts(tmp_path):
    with pytest.raises(ValueError, match="claims"):
        HeadSpec(("a",), 3, claims=True)
    plain = tiny_bundle(*tiny_model("llama"))
    spec = replace(plain.info.spec, acts=("lie", "help"), claims=True)
    heads = StateHeads(spec)
    save_bundle(replace(plain, info=replace(plain.info, spec=spec), heads=heads), tmp_path / "b")
    loaded = load_bundle(tmp_path / "b")
    assert loaded.info.spec.claims
    assert torch.equal(loaded.heads.claim.weight, heads.claim.weight)
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    (tmp_path / "b" / MANIFEST).write_text(json.dumps({**manifest, "claims": False}))
    with pytest.raises(BundleError, match="unknown tensors"):
        load_bundle(tmp_path / "b")


def test_pooled_state_is_float32():
    hidden_BTH = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
    assert pool_state(hidden_BTH, torch.tensor([[9]]), STATE_ID).dtype == torch.float32


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_company_and_padding_do_not_move_a_state(one_thread, kind, side):
    model, tokenizer = tiny_model(kind)
    pad, state = tokenizer.pad_token_id, 60
    rows = [[10, 11, 12, state], [20, 21, 22, 23, 24, 25, state, 26], [30, state]]
    width = max(map(len, rows))
    blank = [[pad] * (width - len(row)) for row in rows]
    pairs = list(zip(rows, blank, strict=True))
    ids_BT = torch.tensor([[*gap, *row] if side == "left" else [*row, *gap] for row, gap in pairs])
    mask_BT = (ids_BT != pad).long()
    with torch.inference_mode():
        batch_BTH = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        pooled_BH = pool_state(batch_BTH, ids_BT, state)
        for row, pooled_H in zip(rows, pooled_BH, strict=True):
            ids_1T = torch.tensor([row])
            alone_1H = pool_state(model.model(input_ids=ids_1T).last_hidden_state, ids_1T, state)
            torch.testing.assert_close(pooled_H, alone_1H[0], atol=1e-4, rtol=1e-4)


# --- spec and modules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"flags": ()},
        {"flags": ("a", "a")},
        {"hidden_size": 0},
        {"layer": 0},
        {"layer": -2},
        {"meaning_size": -1},
        {"acts": ("help", "help")},
    ],
)
def test_spec_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=r"flags|hidden_size|layer|meaning_size|acts"):
        HeadSpec(**{"flags": ("a",), "hidden_size": 4, **values})


def test_heads_have_the_shapes_and_ranges_that_they_say():
    heads = StateHeads(HeadSpec(flags=FLAGS, hidden_size=HIDDEN))
    out = heads(torch.randn(3, HIDDEN) * 50)
    assert out.delta_B2.shape == (3, 2)
    assert out.flag_logits_BN.shape == out.threshold_BN.shape == (3, len(FLAGS))
    assert bool((out.delta_B2.abs() <= 1).all())
    assert bool(((out.threshold_BN >= 0) & (out.threshold_BN <= 1)).all())
    assert bool((out.flag_logits_BN.abs() > 1).any())


def test_heads_read_the_sentence_vector_behind_the_hidden_state():
    heads = StateHeads(HeadSpec(flags=("a",), hidden_size=4, meaning_size=3))
    hidden_BH, meaning_BM = torch.randn(2, 4), torch.randn(2, 3)
    expected = heads.flag(torch.cat([hidden_BH, meaning_BM], dim=1))
    assert torch.equal(heads(hidden_BH, meaning_BM).flag_logits_BN, expected)
    for wrong in (None, torch.randn(2, 2)):
        with pytest.raises(ValueError, match="sentence vector of width 3"):
            heads(hidden_BH, wrong)
    with pytest.raises(ValueError, match="width 0, not 3"):
        StateHeads(HeadSpec(flags=("a",), hidden_size=4))(hidden_BH, meaning_BM)


def test_a_delta_of_acts_is_the_mean_of_what_they_are_worth():
    heads = StateHeads(HeadSpec(flags=("a",), hidden_size=4, acts=("insult", "help")))
    heads.set_worth(torch.tensor([[-0.1, -0.2], [0.3, 0.1]]))
    with torch.no_grad():
        heads.delta.weight.zero_()
        heads.delta.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
    out = heads(torch.randn(1, 4))
    assert out.act_BA[0].tolist() == pytest.approx([0.25, 0.75])
    assert out.delta_B2[0].tolist() == pytest.approx([0.2, 0.025])


def test_heads_take_half_precision_and_answer_in_float32():
    heads = StateHeads(HeadSpec(flags=("a",), hidden_size=4))
    out = heads(torch.ones(1, 4, dtype=torch.bfloat16))
    assert {out.delta_B2.dtype, out.flag_logits_BN.dtype} == {torch.float32}


@given(st.floats(allow_nan=False, width=32), st.floats(-50, 50), st.floats(-50, 50))
@settings(max_examples=60)
def test_platt_gives_a_probability_for_any_logit(logit, scale, shift):
    assert 0.0 <= Platt(scale, shift)(logit) <= 1.0


def test_platt_is_the_logistic_of_a_line():
    assert Platt(2.0, -1.0)(0.5) == pytest.approx(0.5)
    assert Platt()(1.0) == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())


# --- the bundle ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Bundle:
    return tiny_bundle(*tiny_model("qwen2"))


@pytest.fixture
def folder(made: Bundle, tmp_path: Path) -> Path:
    save_bundle(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def make_adapter(folder: Path) -> Path:
    """Write what a bundle asks of an adapter; whether it fits a base is the model's to say."""
    folder.mkdir(parents=True)
    save_file(
        {"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("layer", [FINAL_NORM, 2])
def test_saved_bundle_loads_as_it_was(tmp_path, layer):
    made = tiny_bundle(
        *tiny_model("qwen2"),
        layer=layer,
        languages=("en", "ko"),
        shifts={"give_item": 1.25},
        adapter=make_adapter(tmp_path / "trained"),
        acts=("lie", "help"),
        bad_faith=BadFaith(("lie",), 0.3),
        listens=True,
    )
    info = replace(made.info, metrics={"auc": 0.5, "이름": [1]}, training={"seed": 3})
    made = replace(made, info=info, card="# 카드\n")
    save_bundle(made, tmp_path / "deep" / "bundle")
    loaded = load_bundle(tmp_path / "deep" / "bundle")
    assert loaded.info == made.info
    assert loaded.card == made.card
    assert loaded.adapter == tmp_path / "deep" / "bundle" / ADAPTER
    assert torch.equal(loaded.marker_rows_MH, made.marker_rows_MH)
    for name, value in made.heads.state_dict().items():
        assert torch.equal(loaded.heads.state_dict()[name], value), name
    assert not loaded.heads.training


def test_saving_a_loaded_bundle_again_writes_the_same_bytes(tmp_path, folder):
    save_bundle(load_bundle(folder), tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)
    assert set(files_of(folder)) == {MANIFEST, HEADS, MARKER_ROWS, CARD}


def test_bundle_can_be_saved_over_itself(tmp_path, made):
    target = tmp_path / "bundle"
    save_bundle(replace(made, adapter=make_adapter(tmp_path / "trained")), target)
    before = files_of(target)
    save_bundle(load_bundle(target), target)
    assert files_of(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "trained"]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str
) -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name)


MANIFEST_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another version": (lambda d: d.update(schema_version=1), "schema version 3"),
    "no version": (lambda d: d.pop("schema_version"), "schema version 3"),
    "no name": (lambda d: d.pop("name"), "name"),
    "bad faith of acts unknown": (
        lambda d: d.update(bad_faith={"acts": ["lie"], "limit": 0.3}),
        "bad_faith must name acts",
    ),
    "meaning without embedder": (lambda d: d["meaning"].update(size=3), "heads|embedder"),
    "no base": (lambda d: d.pop("base"), "base"),
    "base as text": (lambda d: d.update(base="x"), "garbles"),
    "no flags": (lambda d: d.update(flags=[]), "flags"),
    "a flag twice": (lambda d: d["flags"].append("give_item"), "flags"),
    "a flag more": (lambda d: d["flags"].append("fly"), "lacks|shape"),
    "a flag less": (lambda d: d["flags"].pop(), "shape"),
    "a flag renamed": (lambda d: d["flags"].__setitem__(0, "fly"), "calibration"),
    "another width": (lambda d: d.update(hidden_size=HIDDEN + 1), "shape"),
    "width as a word": (lambda d: d.update(hidden_size="wide"), "garbles"),
    "endless width": (lambda d: d.update(hidden_size=float("inf")), "garbles"),
    "layer nought": (lambda d: d["pooling"].update(layer=0), "layer"),
    "layer as a word": (lambda d: d["pooling"].update(layer="last"), "garbles"),
    "calibration short": (lambda d: d["calibration"].pop("give_item"), "calibration must name"),
    "calibration long": (
        lambda d: d["calibration"].update(fly={"scale": 1, "shift": 0}),
        "must name",
    ),
    "calibration NaN": (
        lambda d: d["calibration"]["give_item"].update(scale=float("nan")),
        "finite",
    ),
    "calibration odd": (lambda d: d["calibration"]["give_item"].pop("shift"), "garbles"),
    "calibration words": (lambda d: d["calibration"]["give_item"].update(scale="big"), "garbles"),
    "threshold short": (lambda d: d["thresholds"].pop("give_item"), "thresholds must name"),
    "threshold long": (lambda d: d["thresholds"].update(fly=0.5), "thresholds must name"),
    "threshold over 1": (lambda d: d["thresholds"].update(give_item=1.5), "between 0 and 1"),
    "threshold NaN": (lambda d: d["thresholds"].update(give_item=float("nan")), "between 0 and 1"),
    "threshold source": (lambda d: d.update(threshold_source="guess"), "threshold_source"),
    "a marker id twice": (lambda d: d["markers"].update({"<SYS>": d["markers"]["<NPC>"]}), "share"),
    "a negative marker id": (lambda d: d["markers"].update({"<SYS>": -1}), "negative"),
    "a marker less": (lambda d: d["markers"].pop("<SYS>"), "shape"),
    "markers as a list": (lambda d: d.update(markers=list(MARKERS)), "garbles"),
}


@pytest.mark.parametrize("name", MANIFEST_DAMAGE)
def test_damaged_manifest_is_refused_in_plain_words(folder, name):
    change, says = MANIFEST_DAMAGE[name]
    edit_manifest(folder, lambda data: change(data) and None)
    with pytest.raises(BundleError, match=says):
        load_bundle(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "\ufeff{}", "{}", "[" * 100_000, '{"schema_version": 2}']
)
def test_garbled_manifest_is_refused(folder, text):
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=MANIFEST):
        load_bundle(folder)


def test_manifest_of_bytes_is_refused(folder):
    (folder / MANIFEST).write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(BundleError, match="not valid JSON"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, HEADS, MARKER_ROWS])
def test_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        load_bundle(folder)


def test_missing_folder_names_the_training_command(tmp_path):
    with pytest.raises(BundleError, match="python -m training fit"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [HEADS, MARKER_ROWS])
@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_tensors_cut_short_are_refused(folder, name, keep):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


HEAD_TENSORS = [
    f"{head}.{part}" for head in ("delta", "flag", "threshold") for part in ("weight", "bias")
]


@pytest.mark.parametrize("tensor", HEAD_TENSORS)
def test_every_head_must_be_there_whole_and_finite(folder, tensor):
    whole = (folder / HEADS).read_bytes()
    damages: list[tuple[Callable[[dict[str, torch.Tensor]], None], str]] = [
        (lambda t: t.__delitem__(tensor), "lacks"),
        (lambda t: t.update({tensor: torch.zeros(3, 3, 3)}), "has shape"),
        (lambda t: t[tensor].view(-1).__setitem__(0, float("nan")), "NaN or infinity"),
        (lambda t: t[tensor].view(-1).__setitem__(0, float("inf")), "NaN or infinity"),
    ]
    for change, says in damages:
        (folder / HEADS).write_bytes(whole)
        edit_tensors(folder, change, HEADS)
        with pytest.raises(BundleError, match=says):
            load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update(rows=t["rows"][:-1].clone()), "has shape"),
        (lambda t: t.update(rows=t["rows"][:, :-1].clone()), "has shape"),
        (lambda t: t["rows"].view(-1).__setitem__(0, float("nan")), "NaN or infinity"),
        (lambda t: t.update(more=torch.zeros(1)), "one tensor"),
        (lambda t: t.update(lines=t.pop("rows")), "one tensor"),
    ],
)
def test_damaged_marker_rows_are_refused(folder, change, says):
    edit_tensors(folder, change, MARKER_ROWS)
    with pytest.raises(BundleError, match=says):
        load_bundle(folder)


def test_surplus_head_is_refused(folder):
    edit_tensors(folder, lambda t: t.update(mood=torch.zeros(2)), HEADS)
    with pytest.raises(BundleError, match="unknown tensors: mood"):
        load_bundle(folder)


def test_bundle_without_a_card_loads(folder):
    (folder / CARD).unlink()
    assert load_bundle(folder).card == ""
    (folder / CARD).write_bytes(b"\xff caf\xe9")
    assert "caf" in load_bundle(folder).card


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_adapter_must_be_whole(folder, name):
    adapter = make_adapter(folder / ADAPTER)
    assert load_bundle(folder).adapter == adapter
    (adapter / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        load_bundle(folder)


def test_adapter_that_is_damaged_or_not_finite_is_refused(folder):
    weights = make_adapter(folder / ADAPTER) / "adapter_model.safetensors"
    save_file({"lora": torch.tensor([float("nan")])}, weights)
    with pytest.raises(BundleError, match="NaN or infinity"):
        load_bundle(folder)
    weights.write_bytes(b"cut")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [HEADS, MARKER_ROWS, f"{ADAPTER}/adapter_model.safetensors"])
def test_no_pickle_is_ever_read(folder, monkeypatch, name):
    make_adapter(folder / ADAPTER)

    class Poison:
        def __reduce__(self) -> Any:
            return pytest.fail, ("a pickle was read",)

    poison = pickle.dumps(Poison())
    for beside in ("heads.bin", "heads.pt", "pytorch_model.bin", f"{ADAPTER}/adapter_model.bin"):
        (folder / beside).write_bytes(poison)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    load_bundle(folder)
    (folder / name).write_bytes(poison)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)


# --- saving is all or nothing --------------------------------------------------------------------


def other(made: Bundle) -> Bundle:
    return replace(made, info=replace(made.info, name="other"), card="# other\n")


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def replace_unless_new(path: Path, target: Path, real: Any = Path.replace) -> Any:
    """Rename as ever, but for the fresh folder: that one fails as the last step of a save."""
    fresh = path.name.startswith(".bundle.") and path.name != ".bundle.old"
    return full_disk() if fresh else real(path, target)


@pytest.mark.parametrize(
    ("owner", "step", "stand_in"),
    [
        (bundles, "save_file", full_disk),
        (shutil, "copytree", full_disk),
        (bundles, "load_bundle", full_disk),
        (Path, "replace", replace_unless_new),
    ],
)
def test_save_that_fails_leaves_the_old_bundle(
    made, folder, tmp_path, monkeypatch, owner, step, stand_in
):
    before = files_of(folder)
    new = replace(other(made), adapter=make_adapter(tmp_path / "trained"))
    monkeypatch.setattr(owner, step, stand_in)
    with pytest.raises(OSError, match="No space"):
        save_bundle(new, folder)
    assert files_of(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "trained"]


def test_save_replaces_the_old_bundle_whole(made, folder):
    (folder / "stale.txt").write_text("x")
    save_bundle(other(made), folder)
    assert load_bundle(folder).info.name == "other"
    assert not (folder / "stale.txt").exists()


def test_bundle_that_would_not_load_is_not_saved(made, tmp_path):
    bad = replace(made, marker_rows_MH=torch.full_like(made.marker_rows_MH, float("nan")))
    with pytest.raises(BundleError, match="NaN"):
        check_bundle(bad)
    with pytest.raises(BundleError, match="NaN"):
        save_bundle(bad, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
