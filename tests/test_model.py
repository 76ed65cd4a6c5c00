"""The model: one pass over the prompt, equal to two, and strict about what it is loaded with."""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import engine.model as model_module
from engine import embed
from engine.decode import Sampler, Sampling
from engine.errors import ModelError, NotReady
from engine.host import Job, LineDone, StateKnown, run_job
from engine.model import (
    LanguageModel,
    choose_device,
    choose_precision,
    default_marker_rows,
    install_marker_rows,
    load_base,
)
from engine.prompt import MARKERS, STATE, PromptParts, choose_marker_ids
from engine.schema import FLAGS
from heads.bundle import Bundle, load_bundle, save_bundle
from heads.spec import FINAL_NORM, HeadSpec
from tests.fakes import (
    BASE_ID,
    FINGERPRINT,
    KINDS,
    save_tiny_base,
    tiny_bundle,
    tiny_language_model,
    tiny_model,
)

CPU = torch.device("cpu")
PARTS = PromptParts(
    sys="You are Mira.",
    lore=("The bell is cracked.",),
    scene="A cold yard.",
    player_state="The player carries: rope.",
    tags="Stage start; trust 0.10.",
    history=(("Hi", "Hm."),),
    utterance="밧줄을 받으세요. Take the rope!",
)
GREEDY = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=12, seed=0)
BOTH = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("one_thread")


def job_for(model: LanguageModel, **values: Any) -> Job:
    suffix = model.encoder.encode_act("(Mira: warmer.)")
    given = {"sampling": GREEDY, "suffix": suffix, **values}
    return Job(model.encoder.encode(PARTS).ids, **given)


def language_model(model: Any, tokenizer: Any, bundle: Bundle, **values: Any) -> LanguageModel:
    given: dict[str, Any] = {"base_id": BASE_ID, "base_fingerprint": FINGERPRINT}
    limits = {"max_prompt_tokens": 4000, "max_text_tokens": 1000}
    return LanguageModel(model, tokenizer, bundle, **{**given, **limits, **values})


@dataclass
class Watch:
    """What went through the decoder (ids of each call), the output layer (rows), and the sampler."""

    fed: list[list[int]] = field(default_factory=list)
    logit_rows: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)


@contextmanager
def watching(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()

    class Recorder(Sampler):
        def choose(self, logits_V: torch.Tensor, generated: Sequence[int]) -> int:
            watch.chosen.append(super().choose(logits_V, generated))
            return watch.chosen[-1]

    def embed(_module: Any, inputs: Any) -> None:
        watch.fed.append(inputs[0][0].tolist())

    def project(_module: Any, inputs: Any) -> None:
        watch.logit_rows.append(inputs[0].reshape(-1, inputs[0].shape[-1]).shape[0])

    hooks = [
        model.model.get_input_embeddings().register_forward_pre_hook(embed),
        model.model.lm_head.register_forward_pre_hook(project),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "Sampler", Recorder)
        try:
            yield watch
        finally:
            for hook in hooks:
                hook.remove()


class ScriptedHead(nn.Module):
    """An output layer that makes a given sequence of ids the likeliest, one a call."""

    def __init__(self, script: Sequence[int], rows: int) -> None:
        super().__init__()
        self.script, self.rows, self.calls = list(script), rows, 0

    def forward(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        logits_BV = torch.zeros(hidden_BH.shape[0], self.rows)
        logits_BV[:, self.script[self.calls % len(self.script)]] = 50.0
        self.calls += 1
        return logits_BV


def scripted(script: Sequence[int], kind: str = "qwen2") -> LanguageModel:
    model = tiny_language_model(kind)
    rows = model.model.get_input_embeddings().weight.shape[0]
    model.model.lm_head = ScriptedHead(script, rows)
    return model


# --- one pass ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("layer", [FINAL_NORM, 2])
def test_a_job_feeds_every_token_once(tiny, monkeypatch, kind, layer):
    model = tiny(kind, layer=layer)
    job = job_for(model, sampling=replace(GREEDY, temperature=1.0, seed=4))
    with watching(model, monkeypatch) as watch:
        list(run_job(model, job))
    prefill, suffix, *steps = watch.fed
    assert prefill == list(job.ids)
    assert suffix == list(job.suffix or ())
    assert steps == [[token] for token in watch.chosen[:-1]]
    assert len(steps) > 3
    # The output layer is as wide as the vocabulary, so it is asked for the last position alone.
    assert watch.logit_rows == [1] * len(watch.chosen)


@BOTH
def test_a_job_without_a_line_feeds_the_prompt_alone(tiny, monkeypatch, kind):
    model = tiny(kind)
    job = job_for(model, write=False)
    with watching(model, monkeypatch) as watch:
        events = list(run_job(model, job))
    assert len(events) == 1
    assert watch.fed == [list(job.ids)]
    assert watch.logit_rows == []


@BOTH
@pytest.mark.parametrize("layer", [FINAL_NORM, 1, 2])
def test_heads_read_what_a_full_forward_gives(tiny, kind, layer):
    model = tiny(kind, layer=layer)
    ids = model.encoder.encode(PARTS).ids
    prefill = model.prefill(ids)
    with torch.inference_mode():
        full = model.model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
        expected_H = full.hidden_states[layer][0, ids.index(model.encoder.state_id)]
        out = model.bundle.heads(expected_H[None])
    torch.testing.assert_close(prefill.hidden_H, expected_H, atol=1e-4, rtol=0)
    reading = prefill.reading
    assert [reading.trust, reading.relationship] == pytest.approx(
        out.delta_B2[0].tolist(), abs=1e-4
    )
    assert list(reading.probabilities.values()) == pytest.approx(
        torch.sigmoid(out.flag_logits_BN)[0].tolist(), abs=1e-4
    )
    assert list(reading.probabilities) == list(FLAGS)
    assert prefill.length == len(ids)


@BOTH
def test_last_layer_is_read_before_the_final_norm(tiny, kind):
    # So do the training features; output_hidden_states would give the normed state there.
    model = tiny(kind, layer=3)
    ids = model.encoder.encode(PARTS).ids
    raw_H = model.prefill(ids).hidden_H
    normed_H = tiny(kind).prefill(ids).hidden_H
    torch.testing.assert_close(model.model.model.norm(raw_H), normed_H, atol=1e-4, rtol=0)
    assert not torch.allclose(raw_H, normed_H, atol=1e-2)


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_line_equals_a_second_pass_over_everything(monkeypatch, kind, seed):
    base, tokenizer = tiny_model(kind, seed=seed)
    model = language_model(base, tokenizer, tiny_bundle(base, tokenizer))
    job = job_for(model)
    with watching(model, monkeypatch) as watch:
        list(run_job(model, job))
    whole = torch.tensor([[*job.ids, *(job.suffix or ())]])
    reference = model.model.generate(
        whole,
        attention_mask=torch.ones_like(whole),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        suppress_tokens=model.suppressed,
        eos_token_id=sorted(model.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    expected = reference[0, whole.shape[1] :].tolist()
    assert watch.chosen == expected[: len(watch.chosen)]
    assert len(watch.chosen) > 3


@pytest.mark.real
def test_embedded_base_reads_and_writes_the_same_in_one_pass(one_thread, monkeypatch, real_base):
    base, tokenizer = load_base(real_base.path, CPU, "fp32")
    markers = choose_marker_ids(tokenizer, base.get_input_embeddings().weight.shape[0])
    bundle = tiny_bundle(base, tokenizer)
    rows_MH = default_marker_rows(base, tokenizer)
    model = language_model(base, tokenizer, replace(bundle, marker_rows_MH=rows_MH))
    assert model.bundle.info.markers == markers
    job = job_for(model, sampling=replace(GREEDY, max_new_tokens=6))
    with watching(model, monkeypatch) as watch:
        _, *_, done = run_job(model, job)
    assert isinstance(done, LineDone)
    assert [len(ids) for ids in watch.fed[:3]] == [len(job.ids), len(job.suffix or ()), 1]
    whole = torch.tensor([[*job.ids, *(job.suffix or ())]])
    with torch.inference_mode():
        full = base(whole, output_hidden_states=True, use_cache=False)
    state_H = full.hidden_states[-1][0, job.ids.index(model.encoder.state_id)]
    torch.testing.assert_close(model.prefill(job.ids).hidden_H, state_H, atol=2e-3, rtol=1e-3)
    logits_V = full.logits[0, -1].clone()
    logits_V[model.suppressed] = float("-inf")
    assert int(logits_V.argmax()) == watch.chosen[0]


# --- sampling ------------------------------------------------------------------------------------


def tokens_of(model: LanguageModel, monkeypatch: Any, **sampling: Any) -> list[int]:
    values = {"temperature": 1.0, "max_new_tokens": 12, **sampling}
    with watching(model, monkeypatch) as watch:
        list(run_job(model, job_for(model, sampling=replace(GREEDY, **values))))
    return watch.chosen


@BOTH
def test_a_seed_gives_one_line_and_another_seed_another(tiny, monkeypatch, kind):
    model = tiny(kind)
    first = tokens_of(model, monkeypatch, seed=7)
    assert tokens_of(model, monkeypatch, seed=7) == first
    assert len({tuple(tokens_of(model, monkeypatch, seed=seed)) for seed in range(4)}) > 1


@BOTH
def test_markers_and_control_tokens_are_never_written(tiny, monkeypatch, kind):
    model = tiny(kind)
    seen: set[int] = set()
    for seed in range(6):
        seen.update(tokens_of(model, monkeypatch, seed=seed, temperature=2.0, max_new_tokens=60))
    assert len(seen) > 30
    assert not seen & set(model.suppressed)
    assert set(model.bundle.info.markers.values()) <= set(model.suppressed)


def test_markers_that_the_model_wants_most_are_not_written(monkeypatch):
    model = scripted(range(300))
    for marker in model.bundle.info.markers.values():
        model.model.lm_head.script, model.model.lm_head.calls = [marker], 0
        chosen = tokens_of(model, monkeypatch, temperature=2.0, max_new_tokens=5)
        assert marker not in chosen


@BOTH
def test_stop_ids_end_the_line(monkeypatch, kind):
    tokenizer = tiny_model(kind)[1]
    word = tokenizer("Hi", add_special_tokens=False)["input_ids"]
    model = scripted([*word, tokenizer.eos_token_id, *word], kind)
    with watching(model, monkeypatch) as watch:
        *_, done = run_job(model, job_for(model))
    assert watch.chosen == [*word, tokenizer.eos_token_id]
    assert isinstance(done, LineDone)
    assert done.text == "Hi"


def test_every_end_token_of_a_base_stops():
    base, tokenizer = tiny_model("qwen2")
    base.generation_config.eos_token_id = [5, 6]
    model = language_model(base, tokenizer, tiny_bundle(base, tokenizer))
    assert model.stop_ids == {5, 6, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert not model.stop_ids & set(model.suppressed)


def test_line_break_ends_the_line(monkeypatch):
    tokenizer = tiny_model("qwen2")[1]
    script = tokenizer("\nHi\nmore", add_special_tokens=False)["input_ids"]
    model = scripted(script)
    with watching(model, monkeypatch) as watch:
        *_, done = run_job(model, job_for(model))
    assert watch.chosen == script[:4]
    assert isinstance(done, LineDone)
    assert done.text == "Hi"


def test_prefill_serves_one_line_and_needs_a_suffix(tiny):
    model = tiny()
    prefill = model.prefill(model.encoder.encode(PARTS).ids)
    with pytest.raises(ValueError, match="<NPC>"):
        next(model.generate(prefill, (), GREEDY))


# --- what fails is said --------------------------------------------------------------------------


@BOTH
def test_hidden_state_that_is_not_finite_is_a_model_error(kind):
    model = tiny_language_model(kind)
    with torch.no_grad():
        model.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        model.prefill(model.encoder.encode(PARTS).ids)


def test_heads_that_overflow_are_a_model_error():
    model = tiny_language_model()
    with torch.no_grad():
        model._heads.flag.weight.fill_(3e38)
    hidden_1H = torch.ones(1, model.bundle.info.spec.hidden_size)
    with pytest.raises(ModelError, match="not finite"):
        model.read_heads(hidden_1H)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_model_error(temperature):
    model = tiny_language_model()
    with torch.no_grad():
        model.model.lm_head.weight[3] = float("nan")
    events = run_job(model, job_for(model, sampling=replace(GREEDY, temperature=temperature)))
    next(events)
    with pytest.raises(ModelError, match="not finite"):
        list(events)


@pytest.mark.parametrize("ids", [(1, 2), (100_000,), ()])
def test_prompt_that_the_model_cannot_read_is_a_model_error(tiny, ids):
    with pytest.raises(ModelError, match="read the prompt"):
        tiny().prefill(ids)


def test_out_of_memory_is_a_model_error(tiny, monkeypatch):
    model = tiny()

    def burst(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    prefill = model.prefill(model.encoder.encode(PARTS).ids)
    monkeypatch.setattr(model, "_forward", burst)
    with pytest.raises(ModelError, match="out of memory"):
        model.prefill((1,))
    with pytest.raises(ModelError, match="out of memory"):
        next(model.generate(prefill, (1,), GREEDY))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_fingerprint": "other"}, "made for another base"),
        ({"spec": HeadSpec(flags=FLAGS, hidden_size=64)}, "64 wide, the base 32"),
        ({"spec": HeadSpec(flags=FLAGS, hidden_size=32, layer=4)}, "layer 4, the base has 3"),
        ({"markers": {"<STATE>": 5}}, "markers must be"),
        ({"markers": {marker: 10**9 + n for n, marker in enumerate(MARKERS)}}, "beyond id"),
    ],
)
def test_bundle_for_another_base_is_refused_with_the_training_command(change, says):
    base, tokenizer = tiny_model("qwen2")
    bundle = tiny_bundle(base, tokenizer)
    before = base.get_input_embeddings().weight.clone()
    bundle = replace(bundle, info=replace(bundle.info, **change))
    with pytest.raises(NotReady, match=says) as caught:
        language_model(base, tokenizer, bundle)
    assert f"python -m training fit --base {BASE_ID}" in str(caught.value)
    assert torch.equal(base.get_input_embeddings().weight, before)


# --- marker rows ---------------------------------------------------------------------------------


@BOTH
def test_embedding_grows_where_markers_lie_behind_it(kind):
    base, tokenizer = tiny_model(kind)
    before_VH = base.get_input_embeddings().weight.detach().clone()
    bundle = tiny_bundle(base, tokenizer)
    rows = list(bundle.info.markers.values())
    assert min(rows) == before_VH.shape[0]
    model = language_model(base, tokenizer, bundle)
    embedding, head = model.model.get_input_embeddings(), model.model.lm_head
    assert embedding.weight.shape[0] == head.weight.shape[0] == max(rows) + 1
    assert model.model.config.vocab_size == max(rows) + 1
    assert torch.equal(embedding.weight[: len(before_VH)], before_VH)
    assert torch.equal(embedding.weight[rows], bundle.marker_rows_MH)
    assert (head.weight is embedding.weight) == (kind == "llama")  # tied stays tied
    assert isinstance(list(run_job(model, job_for(model)))[-1], LineDone)


@BOTH
def test_embedding_with_room_does_not_grow(kind):
    base, tokenizer = tiny_model(kind, spare_rows=20)
    bundle = tiny_bundle(base, tokenizer)
    rows = base.get_input_embeddings().weight.shape[0]
    model = language_model(base, tokenizer, bundle)
    weight = model.model.get_input_embeddings().weight
    assert weight.shape[0] == rows
    assert torch.equal(
        weight[bundle.info.markers[STATE]], bundle.marker_rows_MH[MARKERS.index(STATE)]
    )


def test_rows_that_no_token_has_are_written_as_nothing(tiny, monkeypatch):
    base, tokenizer = tiny_model("qwen2", spare_rows=20)
    model = language_model(base, tokenizer, tiny_bundle(base, tokenizer))
    model.model.lm_head = ScriptedHead([len(tokenizer) + 15], len(tokenizer) + 20)
    *_, done = run_job(model, job_for(model))
    assert isinstance(done, LineDone)
    assert done.text == ""


def test_markers_of_an_untrained_bundle_look_like_a_line_break():
    base, tokenizer = tiny_model("qwen2")
    rows_MH = default_marker_rows(base, tokenizer)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    assert rows_MH.shape == (len(MARKERS), base.config.hidden_size)
    assert torch.equal(rows_MH[0], base.get_input_embeddings().weight[newline])
    install_marker_rows(base, {"<SYS>": 4}, rows_MH[:1])
    assert torch.equal(base.get_input_embeddings().weight[4], rows_MH[0])


def test_thresholds_come_from_the_head_where_the_bundle_says_so(tiny):
    base, tokenizer = tiny_model("qwen2")
    bundle = tiny_bundle(base, tokenizer)
    learned = replace(bundle, info=replace(bundle.info, threshold_source="head"))
    model = language_model(base, tokenizer, learned)
    prefill = model.prefill(model.encoder.encode(PARTS).ids)
    with torch.inference_mode():
        expected = model.bundle.heads(prefill.hidden_H[None]).threshold_BN[0].tolist()
    assert list(prefill.reading.thresholds.values()) == pytest.approx(expected)
    assert set(tiny().prefill(model.encoder.encode(PARTS).ids).reading.thresholds.values()) == {0.5}


# --- adapters ------------------------------------------------------------------------------------


def make_adapter(folder: Path, kind: str = "qwen2", base: Any = None) -> Any:
    """Write a random LoRA adapter for a base, by default the tiny one; return both as one model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    tiny_base, tokenizer = tiny_model(kind)
    base = base or tiny_base
    bundle = tiny_bundle(base, tokenizer)
    install_marker_rows(base, bundle.info.markers, bundle.marker_rows_MH)
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(base, config).eval()
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted


@BOTH
def test_adapter_is_merged_and_equals_the_unmerged_model(tmp_path, tiny, kind):
    adapted = make_adapter(tmp_path / "trained", kind)
    base, tokenizer = tiny_model(kind)
    bundle = tiny_bundle(base, tokenizer, adapter=tmp_path / "trained")
    save_bundle(bundle, tmp_path / "bundle")
    model = language_model(base, tokenizer, load_bundle(tmp_path / "bundle"))
    assert not any("lora" in name for name, _ in model.model.named_modules())
    ids = model.encoder.encode(PARTS).ids
    with torch.inference_mode():
        expected = adapted(torch.tensor([list(ids)]), output_hidden_states=True)
    hidden_H = model.prefill(ids).hidden_H
    torch.testing.assert_close(hidden_H, expected.hidden_states[-1][0, -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(hidden_H, tiny(kind).prefill(ids).hidden_H, atol=1e-2)


def damaged_adapter(folder: Path, damage: str) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    if damage == "missing":
        del tensors[name]
    elif damage == "surplus":
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    else:
        tensors[name] = torch.zeros(4, 5)
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_adapter_that_does_not_fit_is_not_ready(tmp_path, damage):
    make_adapter(tmp_path / "trained")
    base, tokenizer = tiny_model("qwen2")
    adapter = damaged_adapter(tmp_path / "trained", damage)
    with pytest.raises(NotReady, match="adapter does not fit the base"):
        language_model(base, tokenizer, tiny_bundle(base, tokenizer, adapter=adapter))


@pytest.mark.parametrize("text", ["{", "{}", '{"peft_type": "ODD"}', "[]"])
def test_garbled_adapter_config_is_not_ready(tmp_path, text):
    make_adapter(tmp_path / "trained")
    (tmp_path / "trained" / "adapter_config.json").write_text(text)
    base, tokenizer = tiny_model("qwen2")
    with pytest.raises(NotReady, match="adapter does not fit"):
        language_model(base, tokenizer, tiny_bundle(base, tokenizer, adapter=tmp_path / "trained"))


# --- loading a base ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one tiny base a kind."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        save_tiny_base(folder / kind, kind)
    return folder


@BOTH
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_base_loads_in_its_precision_and_reads(bases, kind, precision, dtype):
    base, tokenizer = load_base(bases / kind, CPU, precision)
    assert base.dtype == dtype
    assert not base.training
    model = language_model(base, tokenizer, tiny_bundle(base, tokenizer), precision=precision)
    *_, done = run_job(model, job_for(model))
    assert isinstance(done, LineDone)
    assert model.prefill(job_for(model).ids).hidden_H.dtype == torch.float32


@BOTH
def test_base_in_four_bits_runs_a_job_with_its_adapter_beside_it(tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    # Its CPU kernels want blocks of 64 weights in each row.
    small, tokenizer = tiny_model(kind)
    small.config.hidden_size, small.config.intermediate_size = 64, 128
    small.config.head_dim = 16
    wide = type(small)(small.config).eval()
    wide.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_adapter(tmp_path / "trained", kind, wide)

    base, tokenizer = load_base(tmp_path / "base", CPU, "4bit")
    assert base.is_loaded_in_4bit
    bundle = tiny_bundle(base, tokenizer, adapter=tmp_path / "trained")
    model = language_model(base, tokenizer, bundle, precision="4bit")
    projection = model.model.model.layers[0].self_attn.q_proj
    assert type(projection.base_layer).__name__ == "Linear4bit"
    assert not projection.merged
    state, *_, done = run_job(model, job_for(model))
    assert isinstance(done, LineDone)
    assert isinstance(state, StateKnown)
    assert all(0.0 <= value <= 1.0 for value in state.reading.probabilities.values())
    ids = job_for(model).ids
    adapted_H = model.prefill(ids).hidden_H
    plain, _ = load_base(tmp_path / "base", CPU, "4bit")
    without = language_model(plain, tokenizer, replace(bundle, adapter=None), precision="4bit")
    assert not torch.allclose(adapted_H, without.prefill(ids).hidden_H, atol=1e-2)


def test_base_and_embedder_are_loaded_one_after_the_other(bases, tmp_path, monkeypatch):
    import sentence_transformers

    inside, overlaps = threading.Lock(), []

    def alone(load):
        def loads(*args, **kwargs):
            overlaps.append(not inside.acquire(blocking=False))
            try:
                time.sleep(0.05)
                return load(*args, **kwargs)
            finally:
                if not overlaps[-1]:
                    inside.release()

        return loads

    read = alone(AutoModelForCausalLM.from_pretrained)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", alone(lambda *_, **__: None))
    with ThreadPoolExecutor(4) as pool:
        bases_read = [pool.submit(load_base, bases / kind, CPU, "fp32") for kind in KINDS]
        embedders = [pool.submit(embed._load, tmp_path) for _ in range(4)]
        for loaded in [*bases_read, *embedders]:
            loaded.result()
    assert overlaps == [False] * 6


def test_base_that_is_not_there_is_not_ready(tmp_path):
    with pytest.raises(NotReady, match="cannot be loaded"):
        load_base(tmp_path / "nowhere", CPU, "fp32")


def test_base_of_another_type_is_not_ready(bases, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(bases / "qwen2", tmp_path / "odd")
    (tmp_path / "odd" / "model.safetensors").unlink()
    tiny = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=300, n_positions=16)
    GPT2LMHeadModel(tiny).save_pretrained(tmp_path / "odd")
    with pytest.raises(NotReady, match="llama, qwen2"):
        load_base(tmp_path / "odd", CPU, "fp32")


def test_pickled_base_is_not_read(bases, tmp_path, monkeypatch):
    shutil.copytree(bases / "qwen2", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(NotReady, match="cannot be loaded"):
        load_base(tmp_path / "base", CPU, "fp32")


def test_device_that_is_not_there_is_not_ready(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotReady, match="DEVICE=auto"):
        choose_device("cuda")
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("device", "quantize", "embedded", "expected"),
    [
        ("cpu", "auto", True, {"bf16", "fp32"}),
        ("cpu", "none", False, {"bf16", "fp32"}),
        ("cpu", "4bit", False, {"4bit"}),
        ("cuda", "auto", False, {"4bit"}),
        ("cuda", "auto", True, {"bf16"}),
        ("cuda", "none", False, {"bf16"}),
    ],
)
def test_precision_follows_device_and_setting(monkeypatch, device, quantize, embedded, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_precision(torch.device(device), quantize, embedded=embedded) in expected


@pytest.mark.parametrize(
    ("supported", "native", "machine", "embedded", "expected"),
    [
        (True, True, "x86_64", True, "bf16"),
        (True, False, "x86_64", True, "fp32"),
        (True, False, "x86_64", False, "bf16"),  # half the memory counts for more
        (True, False, "aarch64", True, "bf16"),
        (False, False, "x86_64", False, "fp32"),
    ],
)
def test_bf16_that_a_processor_would_imitate_serves_large_bases_alone(
    monkeypatch, supported, native, machine, embedded, expected
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert choose_precision(CPU, "auto", embedded=embedded) == expected


def test_card_without_bf16_computes_in_fp16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_precision(torch.device("cuda"), "none", embedded=True) == "fp16"


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16")])
def test_four_bits_compute_in_what_the_card_can(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    compute = model_module._dtype("4bit", torch.device("cuda"))
    assert model_module.nf4_config(compute).bnb_4bit_compute_dtype == getattr(torch, dtype)
