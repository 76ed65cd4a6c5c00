"""GGUF → safetensors, checked against the source. Runs as a process of its own.

    python -m engine.weights.convert GGUF OUT

Knows nothing of the cache: `embedded.py` starts it and moves what it writes into place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine.errors import WeightsError

_MAX_LOGIT_GAP = 0.25  # float16 rounding moves a logit by less than 0.1; a mix-up by several units


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
