"""A sentence through a BERT-type sentence model in the fewest operators.

A turn asks for the vector of one short text, and for that the library around the model takes as long as
its arithmetic: batches, masks, prompts, modules. Here a text goes by itself, so that it has the same
vector in any company. The library remains the reference, and serves all other kinds of models.
Whole numbers (`engine.serving.products`) would halve the time again, but this model bears them worse
than the language model does: they move a vector by 1 % of its length.
Knows nothing of languages or turns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from engine.serving.products import Multiply, plain_product

logger = logging.getLogger(__name__)

_PROBE = "The smith's hammer rang twice, and then it was still."
# How far a number of the vector may lie from the library's; rounding gives 1e-7.
_GAP = 1e-5


@dataclass(frozen=True)
class _Layer:
    """A layer: products with a bias, queries, keys and values in one, and norms."""

    joined: Multiply
    output: Multiply
    norm: tuple[torch.Tensor, torch.Tensor]
    inner: Multiply
    outer: Multiply
    last_norm: tuple[torch.Tensor, torch.Tensor]


class LeanSentences:
    """The forward pass.

    Args:
        model: a `SentenceTransformer` on the CPU: a BERT in float32, the mean of its tokens, its length
            brought to one.

    Raises:
        ValueError: it is another kind, or this pass does not give what the library gives.
    """

    def __init__(self, model: Any) -> None:
        bert = _bert_of(model)
        config = bert.config
        self._tokenizer = model.tokenizer
        self._longest = int(model.max_seq_length)
        self._heads = int(config.num_attention_heads)
        self._eps = float(config.layer_norm_eps)
        table = bert.embeddings
        self._words = table.word_embeddings.weight.detach()
        places_TH, kinds_KH = table.position_embeddings.weight, table.token_type_embeddings.weight
        self._places_TH = (places_TH + kinds_KH[0]).detach()
        self._norm = _both(table.LayerNorm)
        self._layers = [_layer_of(layer) for layer in bert.encoder.layer]
        expected = torch.from_numpy(model.encode([_PROBE], show_progress_bar=False)[0])
        gap = (self.encode(_PROBE) - expected).abs().max().item()
        if not gap <= _GAP:
            raise ValueError(f"it differs from the library's by {gap:.1e}")

    @torch.inference_mode()
    def encode(self, text: str) -> torch.Tensor:
        """Return the unit vector of a text, (H,)."""
        given = self._tokenizer(text.strip(), truncation=True, max_length=self._longest)
        ids_T = torch.tensor(given["input_ids"])
        count = len(ids_T)
        hidden_TH = F.embedding(ids_T, self._words) + self._places_TH[:count]
        width, eps = (hidden_TH.shape[1],), self._eps
        hidden_TH = F.layer_norm(hidden_TH, width, *self._norm, eps)
        for layer in self._layers:
            joined = layer.joined(hidden_TH).view(count, 3, self._heads, -1)
            query, key, value = joined.permute(1, 2, 0, 3).unbind()
            read = F.scaled_dot_product_attention(query, key, value)
            read_TH = read.transpose(0, 1).reshape(count, -1)
            hidden_TH = hidden_TH + layer.output(read_TH)
            hidden_TH = F.layer_norm(hidden_TH, width, *layer.norm, eps)
            inner = F.gelu(layer.inner(hidden_TH))
            hidden_TH = hidden_TH + layer.outer(inner)
            hidden_TH = F.layer_norm(hidden_TH, width, *layer.last_norm, eps)
        return F.normalize(hidden_TH.mean(dim=0), dim=0)


def lean_sentences(model: Any) -> LeanSentences | None:
    """Return the lean pass of a sentence model, or None where it must be the library's."""
    try:
        return LeanSentences(model)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        logger.info("sentences go through the library: %s", exc)
        return None


def _bert_of(model: Any) -> Any:
    """Return the model's BERT.

    Raises:
        ValueError: it is of another kind.
    """
    kinds = [type(part).__name__ for part in model]
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        raise ValueError(f"its parts are {', '.join(kinds)}")
    pooling = model[1].get_config_dict()
    means = pooling.get("pooling_mode") == "mean" or pooling.get("pooling_mode_mean_tokens")
    others = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True]
    if not means or set(others) - {"pooling_mode_mean_tokens"}:
        raise ValueError("its vector is not the mean of its tokens")
    bert = model[0].auto_model
    config = bert.config
    if (config.model_type, config.hidden_act) != ("bert", "gelu"):
        raise ValueError(f"type {config.model_type}, activation {config.hidden_act}")
    if bert.dtype is not torch.float32 or bert.device.type != "cpu":
        raise ValueError(f"it is {bert.dtype} on {bert.device}")
    return bert


def _layer_of(layer: Any) -> _Layer:
    attention = layer.attention
    parts = (attention.self.query, attention.self.key, attention.self.value)
    return _Layer(
        joined=_product(*parts),
        output=_product(attention.output.dense),
        norm=_both(attention.output.LayerNorm),
        inner=_product(layer.intermediate.dense),
        outer=_product(layer.output.dense),
        last_norm=_both(layer.output.LayerNorm),
    )


def _product(*modules: Any) -> Multiply:
    """Return one product for modules that read the same input."""
    weight_NK = torch.cat([module.weight.detach() for module in modules])
    bias_N = torch.cat([module.bias.detach() for module in modules])
    return plain_product(weight_NK, bias_N)


def _both(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.weight.detach(), module.bias.detach()
