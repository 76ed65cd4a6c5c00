"""The bundle: one folder that holds everything trained, saved and loaded strictly.

    bundle.json                schema version, flags, layer, base, markers, calibration, metrics …
    heads.safetensors          the heads, what each act is worth, and its place among them
    marker_rows.safetensors    embedding rows of the prompt's markers, (markers, hidden)
    adapter/                   LoRA adapter in PEFT's format, where one was trained
    README.md                  model card

Anything missing, of another shape or not finite is a `BundleError` that says what to do; there
are no default heads. Knows nothing of the base model beyond its id, checksum and width.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from heads.modules import StateHeads
from heads.spec import FINAL_NORM, HeadSpec
from heads.worth import rises

SCHEMA_VERSION = 3
MANIFEST = "bundle.json"
HEADS = "heads.safetensors"
MARKER_ROWS = "marker_rows.safetensors"
ADAPTER = "adapter"
CARD = "README.md"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_FINAL_NORM_NAME = "final_norm"


class BundleError(ValueError):
    """A bundle that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Platt:
    """Calibration of one flag: probability = sigmoid(scale · logit + shift).

    Source: Platt, "Probabilistic outputs for support vector machines", 1999.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, logit: float) -> float:
        """Return the calibrated probability of a raw logit; saturates instead of overflowing."""
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, self.scale * logit + self.shift))))


@dataclass(frozen=True)
class BadFaith:
    """When a player seems to deceive: the probabilities of `acts`, summed, reach `limit` (0 to 1).

    Then no flag fires, but those that an NPC file keeps open for it.
    """

    acts: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class BundleInfo:
    """What `bundle.json` says.

    Args:
        name: of the bundle, as `/status` and each turn's meta show it.
        spec: the heads' flags, width, layer, acts, claims.
        base_id, base_fingerprint: the base model the bundle was trained for.
        languages: those its model can write.
        embedder_id: of what the heads hear: a sentence embedder, with or without counted words; empty
            where they hear nothing.
        markers: marker → token id; the rows of marker_rows.safetensors are in this order.
        calibration: flag → Platt.
        threshold_source: "constant" (of `thresholds`) or "head".
        thresholds: flag → constant threshold on the calibrated probability.
        bad_faith: when a player seems to deceive; None: the heads do not tell.
        metrics, training: free-form records for the card.
    """

    name: str
    spec: HeadSpec
    base_id: str
    base_fingerprint: str
    languages: tuple[str, ...]
    markers: Mapping[str, int]
    calibration: Mapping[str, Platt]
    threshold_source: str
    thresholds: Mapping[str, float]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    embedder_id: str = ""
    bad_faith: BadFaith | None = None


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: manifest, heads, marker rows (M, H), and the adapter's folder.

    `commit` is the hub's, where it was fetched from there.
    """

    info: BundleInfo
    heads: StateHeads
    marker_rows_MH: torch.Tensor
    adapter: Path | None = None
    card: str = ""
    commit: str = ""


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write `bundle` to `folder`, which is replaced whole: a crash leaves the old one or the new.

    Raises:
        BundleError: the bundle would not load again.
    """
    check_bundle(bundle)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (fresh / MANIFEST).write_text(
            json.dumps(_to_json(bundle.info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        state = {key: value.contiguous().cpu() for key, value in bundle.heads.state_dict().items()}
        save_file(state, fresh / HEADS)
        save_file({"rows": bundle.marker_rows_MH.contiguous().cpu()}, fresh / MARKER_ROWS)
        (fresh / CARD).write_text(bundle.card, encoding="utf-8")
        if bundle.adapter is not None:
            shutil.copytree(bundle.adapter, fresh / ADAPTER)
        load_bundle(fresh)
        fresh.chmod(0o755)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_bundle(folder: Path) -> Bundle:
    """Load and check a bundle.

    Raises:
        BundleError: anything missing, of another shape, not finite, or of another schema version.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no bundle at {folder}; train one with: python -m training fit")
    info = _from_json(_read_manifest(folder / MANIFEST))
    heads = StateHeads(info.spec)
    _load_heads(heads, _read_tensors(folder / HEADS))
    rows = _read_tensors(folder / MARKER_ROWS)
    if set(rows) != {"rows"}:
        raise BundleError(f"{MARKER_ROWS} must hold one tensor called 'rows', found {sorted(rows)}")
    adapter = folder / ADAPTER
    if adapter.exists():
        _check_adapter(adapter)
    card = folder / CARD
    bundle = Bundle(
        info=info,
        heads=heads.eval(),
        marker_rows_MH=rows["rows"].float(),
        adapter=adapter if adapter.exists() else None,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )
    check_bundle(bundle)
    return bundle


def _check_adapter(adapter: Path) -> None:
    for name in (_ADAPTER_WEIGHTS, _ADAPTER_CONFIG):
        if not (adapter / name).is_file():
            raise BundleError(f"{ADAPTER}/ lacks {name}; publish the bundle again, whole")
    _check_finite(_read_tensors(adapter / _ADAPTER_WEIGHTS))


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BundleError(f"{name} holds NaN or infinity; the training run went wrong")


def check_bundle(bundle: Bundle) -> None:
    """Raise `BundleError` unless every part fits every other and every number is finite."""
    info, flags = bundle.info, set(bundle.info.spec.flags)
    for what, keys in (("calibration", info.calibration), ("thresholds", info.thresholds)):
        if set(keys) != flags:
            raise BundleError(f"{what} must name exactly the flags {', '.join(info.spec.flags)}")
    if not all(0.0 <= value <= 1.0 for value in info.thresholds.values()):
        raise BundleError("thresholds must lie between 0 and 1")
    if not all(math.isfinite(p.scale + p.shift) for p in info.calibration.values()):
        raise BundleError("calibration holds a number that is not finite")
    if info.threshold_source not in ("constant", "head"):
        raise BundleError("threshold_source must be 'constant' or 'head'")
    if len(set(info.markers.values())) != len(info.markers):
        raise BundleError("markers: two markers share one token id")
    if any(token < 0 for token in info.markers.values()):
        raise BundleError("markers: a token id is negative")
    expected = (len(info.markers), info.spec.hidden_size)
    if tuple(bundle.marker_rows_MH.shape) != expected:
        raise BundleError(
            f"{MARKER_ROWS} has shape {tuple(bundle.marker_rows_MH.shape)}, expected {expected}"
        )
    if info.bad_faith and not (
        set(info.bad_faith.acts) <= set(info.spec.acts) and 0.0 < info.bad_faith.limit <= 1.0
    ):
        raise BundleError("bad_faith must name acts of the bundle, and a limit from 0 to 1")
    if bool(info.embedder_id) != bool(info.spec.meaning_size):
        raise BundleError("meaning: embedder and size belong together")
    _check_finite({**bundle.heads.state_dict(), "marker rows": bundle.marker_rows_MH})
    if info.spec.acts and not rises(bundle.heads.place_A2, bundle.heads.worth_A2):
        raise BundleError(f"{HEADS}: the acts' places do not rise with what they are worth")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BundleError(f"{path.name} is missing or unreadable in {path.parent}") from exc
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{path.name} is not valid JSON: {exc}") from exc
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path.name} must be of schema version {SCHEMA_VERSION}; train the bundle again "
            "with this version of the program, or use the version that made it"
        )
    return data


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise BundleError(f"{path.name} is missing or damaged in {path.parent}: {exc}") from exc


def _load_heads(heads: StateHeads, tensors: Mapping[str, torch.Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in heads.state_dict().items()}
    if "worth_A2" in tensors and "place_A2" not in tensors:
        # A bundle from before places: its deltas are plain means.
        tensors = {**tensors, "place_A2": tensors["worth_A2"]}
    for name, shape in expected.items():
        if name not in tensors:
            raise BundleError(f"{HEADS} lacks {name!r}; a bundle needs delta, flag and threshold")
        if tuple(tensors[name].shape) != shape:
            raise BundleError(
                f"{HEADS}: {name!r} has shape {tuple(tensors[name].shape)}, expected {shape}"
            )
    surplus = set(tensors) - set(expected)
    if surplus:
        raise BundleError(f"{HEADS} holds unknown tensors: {', '.join(sorted(surplus))}")
    heads.load_state_dict({name: value.float() for name, value in tensors.items()})


def _to_json(info: BundleInfo) -> dict[str, Any]:
    layer = info.spec.layer
    return {
        "schema_version": SCHEMA_VERSION,
        "name": info.name,
        "flags": list(info.spec.flags),
        "hidden_size": info.spec.hidden_size,
        "pooling": {
            "token": "<STATE>",
            "layer": _FINAL_NORM_NAME if layer == FINAL_NORM else layer,
        },
        "meaning": {"embedder": info.embedder_id, "size": info.spec.meaning_size},
        "acts": list(info.spec.acts),
        "claims": info.spec.claims,
        "bad_faith": asdict(info.bad_faith) if info.bad_faith else None,
        "base": {"id": info.base_id, "fingerprint": info.base_fingerprint},
        "languages": list(info.languages),
        "markers": dict(info.markers),
        "calibration": {flag: asdict(platt) for flag, platt in info.calibration.items()},
        "threshold_source": info.threshold_source,
        "thresholds": dict(info.thresholds),
        "metrics": dict(info.metrics),
        "training": dict(info.training),
    }


def _from_json(data: Mapping[str, Any]) -> BundleInfo:
    try:
        layer = data["pooling"]["layer"]
        return BundleInfo(
            name=str(data["name"]),
            spec=HeadSpec(
                flags=tuple(data["flags"]),
                hidden_size=int(data["hidden_size"]),
                layer=FINAL_NORM if layer == _FINAL_NORM_NAME else int(layer),
                meaning_size=int(data["meaning"]["size"]),
                acts=tuple(str(act) for act in data["acts"]),
                claims=bool(data["claims"]),
            ),
            embedder_id=str(data["meaning"]["embedder"]),
            bad_faith=BadFaith(
                acts=tuple(str(act) for act in data["bad_faith"]["acts"]),
                limit=float(data["bad_faith"]["limit"]),
            )
            if data["bad_faith"] is not None
            else None,
            base_id=str(data["base"]["id"]),
            base_fingerprint=str(data["base"]["fingerprint"]),
            languages=tuple(data["languages"]),
            markers={str(name): int(token) for name, token in data["markers"].items()},
            calibration={
                flag: Platt(scale=float(platt["scale"]), shift=float(platt["shift"]))
                for flag, platt in data["calibration"].items()
            },
            threshold_source=str(data["threshold_source"]),
            thresholds={flag: float(value) for flag, value in data["thresholds"].items()},
            metrics=data["metrics"],
            training=data["training"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise BundleError(f"{MANIFEST} lacks or garbles a field: {exc!r}") from exc
