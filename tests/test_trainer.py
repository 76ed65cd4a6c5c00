"""Training adapter and heads together: packs, losses, resuming, and that the result serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import training.finish
from engine.host import Job, LineDone, StateKnown, run_job
from engine.model import LanguageModel, load_base
from engine.npc import build_registry
from engine.prompt import PromptEncoder, choose_marker_ids
from engine.schema import FLAGS
from heads.bundle import Bundle, BundleError, load_bundle, save_bundle
from heads.modules import StateHeads
from heads.spec import FINAL_NORM, HeadSpec
from tests.engines import KEEPER, keeper_data
from tests.fakes import BASE_ID, FINGERPRINT, WordEmbedder, tiny_model
from training.args import Base, TrainArgs
from training.branches import Branches, attend
from training.collate import collate
from training.corpus import Corpus, make_corpus
from training.dataset import Example, encode_example, make_packs
from training.losses import LossWeights
from training.model import LoraArgs, MultiHeadModel
from training.rows import Row
from training.rubric import ACTS
from training.scaled import ScaledHeads
from training.states import StateStore, until_state
from training.train import refit_bundle, train_bundle
from training.trainer import MultiHeadTrainer

ROOT = Path(__file__).resolve().parent.parent
# Pack size that puts the keeper's rows into four packs.
PAIRS = 950
LAYERS = pytest.mark.parametrize("layer", [2, FINAL_NORM])
BOTH = pytest.mark.parametrize("kind", ["llama", "qwen2"])
SMALL = TrainArgs(
    epochs=2,
    layer=2,
    pack_tokens=3000,
    accumulate=1,
    save_steps=2,
    lora=LoraArgs(rank=4, alpha=8),
)


def keeper_rows(count: int = 12) -> list[Row]:
    """Return rows of the lighthouse keeper, some of them handing over the key."""
    rows = []
    for number in range(count):
        ready = number % 2 == 0
        rows.append(
            Row.model_validate(
                {
                    "npc_id": KEEPER,
                    "lang": "en",
                    "tags": {"quest_stage": "closed", "trust": 0.3, "relationship": 0.1},
                    "player_state": {
                        "items": ["lantern"],
                        "actions": ["lit_lamp"],
                        "game_state": {"tide_low": True},
                    }
                    if ready
                    else {},
                    "player_utterance": f"May I have the key now, as on evening {number}?",
                    "response": "Take the key." if ready else f"Not on evening {number}.",
                    "delta": {},
                    "asks": ["give_item"],
                    "act": "courtesy" if ready else "demand",
                }
            )
        )
    return rows


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    registry = build_registry({f"{KEEPER}.json": _keeper()})
    return make_corpus(keeper_rows(), registry, {}, WordEmbedder(), seed=1)


def _keeper() -> Any:
    from engine.npc import parse_npc

    return parse_npc(keeper_data(), path=f"{KEEPER}.json")


def examples_of(corpus: Corpus, kind: str, languages: tuple[str, ...] = ("en",)) -> list[Example]:
    model, tokenizer = tiny_model(kind)
    markers = choose_marker_ids(tokenizer, model.get_input_embeddings().weight.shape[0])
    encoder = PromptEncoder(tokenizer, markers, max_tokens=3000, max_text_tokens=1000)
    return [
        encode_example(row, one, encoder, corpus.registry, languages)
        for row, one in zip(corpus.rows, corpus.judged, strict=True)
    ]


def multi_head(kind: str, *, layer: int = 2, adapted: bool = True) -> MultiHeadModel:
    model, tokenizer = tiny_model(kind)
    markers = choose_marker_ids(tokenizer, model.get_input_embeddings().weight.shape[0])
    torch.manual_seed(3)
    made = MultiHeadModel(
        model,
        tokenizer,
        markers,
        ScaledHeads(
            StateHeads(HeadSpec(FLAGS, 32, layer)), torch.zeros(32), torch.ones(32), len(ACTS)
        ),
        lora=LoraArgs(rank=4, alpha=8),
        positive_N=torch.ones(len(FLAGS)),
        weights=LossWeights(),
    )
    if adapted:  # LoRA starts as nothing; make it do something
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    return made


# --- packs ---------------------------------------------------------------------------------------


@BOTH
@LAYERS
def test_rows_in_a_pack_are_read_as_if_each_stood_alone(corpus, kind, layer):
    model, examples = multi_head(kind, layer=layer), examples_of(corpus, kind)
    (pack,) = make_packs(examples, max_tokens=10**6, max_examples=99, seed=1)
    together = model.eval()(**collate([pack])).detached()
    alone = [model(**collate([one])).detached() for one in _singles(examples)]
    for part, whole in together.items():
        assert whole == pytest.approx(sum(parts[part] for parts in alone), rel=1e-4), part


@BOTH
def test_a_pack_of_one_equals_the_library_model(corpus, kind):
    model = multi_head(kind, layer=FINAL_NORM).eval()
    one = examples_of(corpus, kind)[0]
    inputs = collate(make_packs([one], max_tokens=10**6, max_examples=1, seed=1))
    _, hidden_KH = model.read(**inputs)
    model.peft.base_model.model.config._attn_implementation = "sdpa"
    expected = model.peft.base_model.model.model(input_ids=torch.tensor([one.ids]))
    assert torch.allclose(hidden_KH[0], expected.last_hidden_state[0, one.state], atol=1e-4)


def _singles(examples: list[Example]) -> list[Any]:
    return make_packs(examples, max_tokens=1, max_examples=1, seed=1)


def test_packs_hold_every_row_once_and_keep_to_their_limits(corpus):
    examples = examples_of(corpus, "qwen2")
    packs = make_packs(examples, max_tokens=4000, max_examples=3, seed=1)
    held = [one for pack in packs for one in pack.examples]
    assert sorted(map(id, held)) == sorted(map(id, examples))
    assert all(len(pack.examples) <= 3 for pack in packs)
    assert all(pack.tokens <= 4000 or len(pack.examples) == 1 for pack in packs)
    again = make_packs(examples, max_tokens=4000, max_examples=3, seed=1)
    assert [pack.examples for pack in again] == [pack.examples for pack in packs]


def test_only_the_reply_and_its_end_are_learnt(corpus):
    one = examples_of(corpus, "qwen2")[0]
    (pack,) = make_packs([one], max_tokens=10**6, max_examples=1, seed=1)
    labels = collate([pack])["labels_1T"][0]
    learnt = labels[labels != -100].tolist()
    assert learnt == list(one.ids[one.reply :])
    tokenizer = tiny_model("qwen2")[1]
    assert tokenizer.decode(learnt[:-1]) == corpus.rows[0].response
    assert learnt[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_reply_in_a_language_that_the_base_cannot_write_is_not_learnt(corpus):
    one = examples_of(corpus, "qwen2", languages=("ko",))[0]
    assert one.reply_tokens == 0
    assert one.state == len(one.ids) - 1


def test_branched_attention_refuses_what_it_would_get_wrong():
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="layout"):
        attend(None, query, query, query, None, 1.0)
    with pytest.raises(ValueError, match="layout"):
        attend(None, query, query, query, None, 1.0, dropout=0.1, branches=Branches.of(1, [2]))


# --- losses --------------------------------------------------------------------------------------


def _gradients(corpus: Corpus, tmp_path: Path, accumulate: int) -> dict[str, torch.Tensor]:
    """Return the gradients of one step over four rows, in one pack or in four."""
    from transformers import TrainingArguments

    model, examples = multi_head("qwen2"), examples_of(corpus, "qwen2")[:4]
    packs = (
        _singles(examples)
        if accumulate == 4
        else make_packs(examples, max_tokens=10**6, max_examples=4, seed=1)
    )
    assert len(packs) == accumulate
    trainer = MultiHeadTrainer(
        model,
        head_lr=1e-3,
        args=TrainingArguments(
            output_dir=str(tmp_path / str(accumulate)),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=accumulate,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=packs,
        data_collator=collate,
    )
    batches, counts = trainer.get_batch_samples(
        iter([collate([pack]) for pack in packs]), accumulate, torch.device("cpu")
    )
    assert counts.tolist()[0] == 4
    trainer.current_gradient_accumulation_steps = accumulate
    for batch in batches:
        trainer.training_step(model, batch, num_items_in_batch=counts)
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_a_step_is_the_same_in_one_pack_and_accumulated_from_four(corpus, tmp_path):
    once, four = _gradients(corpus, tmp_path, 1), _gradients(corpus, tmp_path, 4)
    assert set(once) == set(four)
    assert once
    for name, gradient in once.items():
        assert torch.allclose(gradient, four[name], rtol=1e-3, atol=1e-5), name


def test_only_adapter_heads_and_the_markers_rows_are_trained():
    model = multi_head("qwen2")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(
        any(part in name for part in ("lora_", "heads.", "trainable_tokens")) for name in trained
    )
    rows = next(p for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    assert rows.shape == (len(model.markers), 32)


# --- whole runs ----------------------------------------------------------------------------------


def run(corpus: Corpus, base: Base, folder: Path, **changes: Any) -> Any:
    return trained(corpus, base, replace(SMALL, **changes), folder)


def trained(*args: Any, **options: Any) -> Bundle:
    """Train alone: then there is a bundle."""
    bundle = train_bundle(*args, **options)
    assert bundle is not None
    return bundle


def tiny_base(kind: str = "qwen2") -> Base:
    return Base(*tiny_model(kind), BASE_ID, FINGERPRINT, ("en",), 3000)


def test_training_learns_what_the_state_decides(corpus, tmp_path):
    before = run(corpus, tiny_base(), tmp_path / "a", epochs=0.01)
    after = run(corpus, tiny_base(), tmp_path / "b", epochs=30, head_lr=1e-2, lr=3e-3)
    index = list(corpus.split.train)
    assert index
    logged = json.loads((tmp_path / "b" / "checkpoint-30" / "trainer_state.json").read_text())
    losses = [entry["loss_flags"] for entry in logged["log_history"] if "loss_flags" in entry]
    assert losses[-1] < 0.5 * losses[0]
    for part in ("loss_language", "loss_delta", "loss_threshold"):
        assert all(np.isfinite(entry[part]) for entry in logged["log_history"] if part in entry)
    assert before.info.spec == after.info.spec


def test_a_trained_bundle_is_served_as_it_was_read_in_training(corpus, tmp_path):
    base = tiny_base()
    bundle = run(corpus, base, tmp_path / "run", epochs=4, lr=2e-3)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.info.threshold_source in ("constant", "head")
    assert set(load_file(tmp_path / "bundle" / "adapter" / "adapter_model.safetensors"))
    served = LanguageModel(
        *tiny_model("qwen2"), loaded, base_id=BASE_ID, base_fingerprint=FINGERPRINT
    )
    example = examples_of(corpus, "qwen2")[0]
    read = _read_again(corpus, tmp_path / "run", example)
    meaning = corpus.heard[0].tolist()
    reading = served.prefill(example.ids[: example.state + 1], meaning).hidden_H
    # The adapter is saved in half precision.
    assert torch.allclose(reading, read, atol=2e-2)


def _read_again(corpus: Corpus, folder: Path, example: Example) -> torch.Tensor:
    model = multi_head("qwen2", adapted=False)
    missing = model.load_state_dict(load_file(folder / "best.safetensors"), strict=False)
    assert not missing.unexpected_keys
    inputs = collate(make_packs([example], max_tokens=10**6, max_examples=1, seed=1))
    return model.eval().read(**inputs)[1][0]


def test_a_run_goes_on_from_a_bundle_and_not_from_one_that_does_not_fit(corpus, tmp_path):
    first = run(corpus, tiny_base(), tmp_path / "first", epochs=2, lr=2e-3)
    save_bundle(first, tmp_path / "bundle")
    start = load_bundle(tmp_path / "bundle")
    told = {**first.info.metrics, "test": {**first.info.metrics["test"], "base_perplexity": 9.5}}
    start = replace(start, info=replace(start.info, metrics=told))
    begun = multi_head_from(start)
    held = load_file(tmp_path / "bundle" / "adapter" / "adapter_model.safetensors")
    mine = {name: p for name, p in begun.named_parameters() if "lora_" in name}
    assert len(mine) == len(held)
    for name, tensor in held.items():
        own = mine["peft." + name.replace(".weight", ".default.weight")]
        assert torch.equal(own.half(), tensor), name
    assert torch.allclose(begun.marker_rows(), start.marker_rows_MH, atol=1e-6)
    on = trained(
        corpus, tiny_base(), replace(SMALL, epochs=1, start="first"), tmp_path / "on", start=start
    )
    assert on.info.training["start"] == "first"
    assert on.info.metrics["test"]["base_perplexity"] == 9.5
    with pytest.raises(BundleError, match="another size"):
        multi_head_from(start, rank=2)


def test_finishing_again_reads_nothing_again_and_gives_the_same(corpus, tmp_path, monkeypatch):
    first = run(corpus, tiny_base(), tmp_path / "run", epochs=1)
    read = training.finish.read_examples
    monkeypatch.setattr(training.finish, "read_examples", None)
    again = trained(corpus, tiny_base(), replace(SMALL, epochs=1), tmp_path / "run", finish=True)
    assert again.info == first.info
    for name, tensor in first.heads.state_dict().items():
        assert torch.equal(again.heads.state_dict()[name], tensor), name
    monkeypatch.setattr(training.finish, "read_examples", read)


def test_a_refit_takes_the_adapter_as_it_is_and_fits_heads_on_the_rows_of_today(corpus, tmp_path):
    first = run(corpus, tiny_base(), tmp_path / "first", epochs=1, lr=2e-3)
    save_bundle(first, tmp_path / "bundle")
    start = load_bundle(tmp_path / "bundle")
    more = make_corpus(keeper_rows(20), corpus.registry, {}, WordEmbedder(), seed=1)
    args = replace(SMALL, start="first", name="again")
    again = refit_bundle(more, tiny_base(), args, tmp_path / "run", start)
    save_bundle(again, tmp_path / "again")
    ships = Path("adapter") / "adapter_model.safetensors"
    held = load_file(tmp_path / "bundle" / ships)
    for name, tensor in load_file(tmp_path / "again" / ships).items():
        assert torch.equal(tensor, held[name]), name
    assert torch.equal(again.marker_rows_MH, start.marker_rows_MH)
    told = again.info.training
    assert (told["start"], told["command"]) == ("first", "python -m training train --refit")
    assert told["adapter"]["steps"] == first.info.training["steps"]
    assert sum(told["rows"].values()) == 20
    assert "spread" not in again.info.metrics
    drawn = refit_bundle(more, tiny_base(), replace(args, draws=2), tmp_path / "run", start)
    figures = drawn.info.metrics["spread"]
    assert figures["draws"] == 2
    for one in figures["test"].values():
        assert one["least"] <= one["mean"] <= one["most"]
    assert "| 2 draws | macro-F1 |" in drawn.card
    for name, tensor in again.heads.state_dict().items():
        assert torch.equal(drawn.heads.state_dict()[name], tensor), name
    with pytest.raises(BundleError, match="reads layer 2"):
        refit_bundle(more, tiny_base(), replace(args, layer=1), tmp_path / "run", start)
    bare = replace(start, adapter=None)
    with pytest.raises(BundleError, match="no adapter to fit heads on"):
        refit_bundle(more, tiny_base(), args, tmp_path / "run", bare)


def test_states_are_read_once_by_prompt_and_weights(corpus, tmp_path):
    examples, asked = examples_of(corpus, "qwen2"), list[int]()

    def reader(part: Sequence[Example]) -> np.ndarray:
        asked.append(len(part))
        assert all(one.ids[-1] == one.ids[one.state] for one in part)
        return np.array([[len(one.ids), sum(one.ids)] for one in part], dtype=np.float32)

    path = tmp_path / "run" / "states.npz"
    first = StateStore(path, "a").read(examples[:5], reader)
    assert [tuple(state) for state in first] == [
        (one.state + 1, sum(one.ids[: one.state + 1])) for one in examples[:5]
    ]
    more = StateStore(path, "a").read(examples, reader)
    assert asked == [5, len(examples) - 5]
    assert np.array_equal(more[:5], first)
    StateStore(path, "b").read(examples[:2], reader)
    assert asked[-1] == 2


def test_what_stands_behind_the_state_and_the_heads_layer_changes_no_reading(corpus):
    model, examples = multi_head("llama", layer=1), examples_of(corpus, "llama")[:4]
    packs = [
        collate(make_packs(some, max_tokens=10**6, max_examples=9, seed=1))
        for some in (examples, [until_state(one) for one in examples])
    ]
    model.eval()
    layout = ("ids_1T", "positions_1T", "prefix", "lengths_K", "state_K")
    whole_KH = model._hidden(**{name: packs[0][name] for name in layout})[1]
    _, cut_KH = model.read(**packs[1])
    assert torch.allclose(whole_KH.sort(0)[0], cut_KH.sort(0)[0], atol=1e-5)
    assert len(model.peft.base_model.model.model.layers) > model.spec.layer  # put back


def multi_head_from(start: Any, rank: int = 4) -> MultiHeadModel:
    model, tokenizer = tiny_model("qwen2")
    return MultiHeadModel(
        model,
        tokenizer,
        start.info.markers,
        multi_head("qwen2").heads,
        lora=LoraArgs(rank=rank, alpha=8),
        positive_N=torch.ones(len(FLAGS)),
        weights=LossWeights(),
        start=start,
    )


def test_reading_merged_leaves_the_weights_as_they_were_bit_by_bit():
    model = multi_head("qwen2").to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with model.merged():
        assert any(not torch.equal(model.state_dict()[name], before[name]) for name in before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_attack_counts_as_often_as_the_weight_says(corpus):
    model, one = multi_head("qwen2").eval(), examples_of(corpus, "qwen2")[0]
    calm, hostile = (
        model(**collate(_singles([replace(one, attack=attack)]))).detached()
        for attack in (False, True)
    )
    assert hostile["flags"] == pytest.approx(model.weights.attack * calm["flags"], rel=1e-5)
    assert hostile["delta"] == pytest.approx(calm["delta"])


def test_a_four_bit_base_trains_and_its_bundle_serves(corpus, tmp_path):
    small, tokenizer = tiny_model("qwen2")
    # Its CPU kernels want blocks of 64 weights in each row.
    small.config.hidden_size, small.config.intermediate_size = 64, 128
    small.config.head_dim = 16
    type(small)(small.config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    device = torch.device("cpu")
    base = Base(*load_base(tmp_path / "base", device, "4bit"), BASE_ID, FINGERPRINT, ("en",), 3000)
    assert base.model.is_loaded_in_4bit
    bundle = run(corpus, base, tmp_path / "run", epochs=1)
    save_bundle(bundle, tmp_path / "bundle")
    served = LanguageModel(
        *load_base(tmp_path / "base", device, "4bit"),
        load_bundle(tmp_path / "bundle"),
        base_id=BASE_ID,
        base_fingerprint=FINGERPRINT,
    )
    from engine.decode import Sampling

    example = examples_of(corpus, "qwen2")[0]
    meaning = tuple(corpus.heard[0].tolist())
    job = Job(example.ids[: example.state + 1], Sampling(0.0, 1.0, 1.0, 4, 1), meaning=meaning)
    known, *_, done = run_job(served, job)
    assert isinstance(known, StateKnown)
    assert isinstance(done, LineDone)


_RUN = """
import json, os, sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
from tests.test_trainer import SMALL, WordEmbedder, keeper_rows, make_corpus, tiny_base, _keeper
from engine.npc import build_registry
from heads.bundle import save_bundle
from training.train import train_bundle
registry = build_registry({{"keeper.json": _keeper()}})
corpus = make_corpus(keeper_rows(), registry, {{}}, WordEmbedder(), seed=1)
folder = Path(sys.argv[1])
args = replace(SMALL, **json.loads(sys.argv[2]))
bundle = train_bundle(corpus, tiny_base(), args, folder, resume=True)
(folder / f"done-{{os.environ.get('RANK', 'alone')}}").write_text(str(bundle is not None))
if bundle is not None:
    save_bundle(bundle, folder / "bundle")
"""
# What `accelerate launch` starts for several GPUs; on CPUs it wants MPI.
_LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def start_run(folder: Path, *, processes: int = 1, **changes: Any) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(_RUN.format(root=str(ROOT)))
    launch = [] if processes == 1 else [*_LAUNCH, str(processes)]
    # They meet on this machine, whether or not its name can be looked up.
    here = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *launch, script, str(folder), json.dumps(changes)],
        cwd=ROOT,
        env={**os.environ, **here},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def trained_tensors(folder: Path) -> dict[str, torch.Tensor]:
    names = ("heads", "marker_rows", "adapter/adapter_model")
    return {
        f"{name}: {key}": tensor
        for name in names
        for key, tensor in load_file(folder / "bundle" / f"{name}.safetensors").items()
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_run(whole).wait(timeout=300) == 0
    process = start_run(killed)
    deadline = time.monotonic() + 300
    while not list(killed.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "bundle").exists()
    assert start_run(killed).wait(timeout=300) == 0
    first, second = trained_tensors(whole), trained_tensors(killed)
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_two_processes_learn_what_one_learns_that_takes_two_packs_a_step(tmp_path):
    # Four packs an epoch: an odd one would be dealt out twice.
    alone, both = tmp_path / "alone", tmp_path / "both"
    # A limit of time that is far off: the processes must agree on the clock at every step.
    packs = {"pack_tokens": PAIRS, "save_steps": 100, "minutes": 60.0}
    assert start_run(alone, accumulate=2, **packs).wait(timeout=300) == 0
    assert start_run(both, processes=2, accumulate=1, **packs).wait(timeout=300) == 0
    states = [
        json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
        for folder in (alone, both)
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    assert {one.name: one.read_text() for one in both.glob("done-*")} == {
        "done-0": "True",
        "done-1": "False",
    }
    first, second = trained_tensors(alone), trained_tensors(both)
    adapter = [name for name in first if name.startswith("adapter")]
    assert adapter
    for name in adapter:
        assert torch.allclose(first[name], second[name], atol=1e-4), name
