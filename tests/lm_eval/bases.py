"""Makes the bases and modules that check.py serves: once, then they are read from the work directory.

`default` is the default base of polyskill as transformers reads its GGUF file, in f32. `tiny` is a llama of random
weights with a tokenizer like that of Llama 2; `tiny-no-bos` is the same one with a tokenizer that adds no <s>. Each has
one module, a LoRA of random weights.
"""

from __future__ import annotations

import copy
import json
import pathlib
import shutil
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TASKS = pathlib.Path(__file__).resolve().parent / "tasks"
MODULE = "random-lora"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = slice(len(SPECIAL), len(SPECIAL) + 256)
# As in Llama 2's own template, <s> is text of the template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def once(folder: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder, made if it is not there; it gets its name when it is complete."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def default_base(work: pathlib.Path, gguf: pathlib.Path) -> pathlib.Path:
    def make(folder: pathlib.Path) -> None:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        plain_copy(read).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        assert tokenizer.chat_template, f"{gguf.name} has no chat template"
        tokenizer.save_pretrained(folder)

    return once(work / "bases" / "default", make)


def plain_copy(read: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows nothing of GGUF: transformers does not save the one that it read."""
    config = copy.deepcopy(read.config)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    return plain


def tiny_base(work: pathlib.Path) -> pathlib.Path:
    def make(folder: pathlib.Path) -> None:
        tokenizer = llama_tokenizer()
        save_tokenizer(tokenizer, folder)
        tiny_model(tokenizer.get_vocab_size()).save_pretrained(folder)

    return once(work / "bases" / "tiny", make)


def tiny_base_without_bos(work: pathlib.Path, tiny: pathlib.Path) -> pathlib.Path:
    def make(folder: pathlib.Path) -> None:
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.Sequence([])
        save_tokenizer(tokenizer, folder)

    return once(work / "bases" / "tiny-no-bos", make)


def tiny_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        # So large that distributions are far from flat.
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        # Bytes are not to be generated: alone they are no characters, and their text is a matter of taste.
        model.lm_head.weight[BYTES] *= 0.1
    return model


def llama_tokenizer() -> Tokenizer:
    """Laid out as the tokenizer.json of Llama 2: BPE over blanks, bytes for unknown characters, <s> in front."""
    vocabulary, merges = train_bpe()
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def train_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over the tasks' texts. Characters beyond ASCII are left to the bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # SentencePiece has no merges across words either.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    files = sorted(TASKS.glob("*.jsonl"))
    words = (text for file in files for text in texts(file))
    tokenizer.train_from_iterator((ascii_of(text) for text in words), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def ascii_of(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def texts(file: pathlib.Path) -> list[str]:
    """All strings of a file of the tasks."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    values = [value for row in rows for value in row.values()]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [value for entry in lists for value in entry if isinstance(value, str)]


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def module(work: pathlib.Path, base: pathlib.Path, name: str, spread: float) -> pathlib.Path:
    """A LoRA on all linear layers, as PEFT saves it; `spread` is the deviation of its second matrix."""

    def make(folder: pathlib.Path) -> None:
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                # PEFT begins with zeros, with which a module changes nothing.
                torch.nn.init.normal_(parameter, std=spread)
        model.save_pretrained(folder)

    return once(work / "modules" / name / MODULE, make)
