"""Two GGUF files with a vocabulary alone, and the token ids that llama.cpp makes of many texts with them.

On its own, not part of `make.py`: beside requirements.txt it needs llama-cpp-python 0.3.36, of which only the vocabulary
is used. Takes half a minute; a rerun writes the same bytes.

- `gguf/vocab-bpe.gguf`: byte-level BPE, and `gguf/vocab-spm.gguf`: the BPE of SentencePiece (which also has merges, for
  the variants that read them). They are trained on short cuts of the texts, so that tokens reach over the places where
  pre-tokenizers cut, and have tokens of every type.
- `goldens/gguf_tokenizers.json`:
  - `texts`: `{"text"}`. Ids refer to their order, from 0.
  - `variants`: the ids of every text where the file's metadata is changed. `file`; `pre`, what `tokenizer.ggml.pre` is set
    to (null: the key is removed; absent: as in the file); `keys`, other keys that are set, or removed where null;
    `add_special` and `parse_special` as of `llama_tokenize`; and the ids: those of the variant named `like` (or none), with
    the ids `before` in front and `after` behind, but those in `ids`, by the text's number, as they are there.
  - `pieces`: for some variants (the name is theirs) the bytes of every token in hex (`llama_token_to_piece` with
    special), the tokens that are `hidden` without special, and those at which generation ends (`ends`). Beyond the first
    of a file only the `pieces` that differ from those of `like` are listed, by token.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import random
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from gguf import TokenType
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from common import GGUF, GOLDENS, Json, write_goldens

BPE, SPM = "vocab-bpe.gguf", "vocab-spm.gguf"
BLANK = "\u2581"
KEY = "tokenizer.ggml."

# What cuts texts in the same places stands in one line; the flags may differ there.
PRES = """
default
gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 jina-v1-en jina-v2-code roberta-bpe
mpt olmo jais trillion granite-docling
llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe glm4 glm5
qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2
smollm starcoder refact command-r codeshell exaone minerva-7b mellum2
qwen35
tekken
gpt-4o llama4 kanana2 talkie minimax-m2
deepseek-llm
deepseek-coder
deepseek-v3 hunyuan-dense joyai-llm hy_v4
falcon
kimi-k2
superbpe
seed-coder
bailingmoe bailingmoe2 llada-moe
poro-chat bloom gpt3-finnish
viking
jais-2
chameleon
tiny_aya cohere2moe
exaone-moe
youtu
minicpm5
afmoe
laguna
spark2_5
ufakzeka
granite-embed-multi-97m
""".split()
# These read the text itself, not its bytes as letters, so they go with the other vocabulary.
RAW_PRES = ["gemma4", "granite-embed-multi-311m", "sarvam-moe"]

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "We're sure they've said I'm late; he'd go, she'll stay. It's Tom's.",
    "WE'RE SURE THEY'VE SAID I'M LATE; HE'D GO, SHE'LL STAY. IT'S TOM'S.",
    "We'Re 'S 'sS 't'T x'lL y'Ve 'rE'd 'Mm 'stuff 'llama rock'n'roll O'Neill",
    "the '\u017fun and the K\u2019s isn\u2019t \u2018quoted\u2019, '\u212a x'\u017f",
    "camelCase HTTPServer XMLHttpRequest iPhone snake_case SCREAMING_SNAKE kebab-case aB Ab AB ABc",
    "na\u00efve caf\u00e9 \u00c9COLE stra\u00dfe STRASSE \u00c5ngstr\u00f6m \u0130stanbul I\u0307 \u0131 \ufb01ne \u01c5ungla \u01c8ubav",
    "nai\u0308ve cafe\u0301 E\u0301COLE A\u030angstro\u0308m o\u0302\u0323 q\u0307\u0323 x\u0338y \u0301start",
    "\u1e9e\u1e9e \u0149 \u03c2\u03c3\u03a3 \u1fb3 \u2126\u212b\u212a \u2160\u2161\u2162 \u00b2\u00b3\u00b9 \u00bd\u00be \u2468 \u0661\u0662\u0663 \u0967\u0968\u0969",
    "\u0397 \u03b3\u03c1\u03ae\u03b3\u03bf\u03c1\u03b7 \u03ba\u03b1\u03c6\u03ad \u03b1\u03bb\u03b5\u03c0\u03bf\u03cd \u03c0\u03b7\u03b4\u03ac\u03b5\u03b9.",
    "\u0421\u044a\u0435\u0448\u044c \u0436\u0435 \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a, \u0411\u0410\u0411\u0423\u0428\u041a\u0410! \u041f\u043e-\u0440\u0443\u0441\u0441\u043a\u0438.",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f \u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f \u0661\u0662\u0663\u0664\u0665",
    "\u06cc\u06c1 \u0627\u0631\u062f\u0648 \u06c1\u06d2\u06d4 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, \u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da? \u05d1\u05bc\u05b0\u05e8\u05b5\u05d0\u05e9\u05c1\u05b4\u05d9\u05ea",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964 \u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f \u0939\u093f\u0928\u094d\u0926\u0940 \u0967\u0968\u0969",
    "\u09ac\u09be\u0982\u09b2\u09be \u0aad\u0abe\u0ab7\u0abe \u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0c24\u0c46\u0c32\u0c41\u0c17\u0c41",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e19\u0e49\u0e33\u0e41\u0e02\u0e47\u0e07 \u0e51\u0e52\u0e53",
    "\u5feb\u901f\u7684\u68d5\u8272\u72d0\u72f8\u8df3\u8fc7\u4e86\u61d2\u72d7\u3002\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4e2d\u6587abc\u4e2d\u6587123\u4e2d\u6587\u3005\u3007\u3001",
    "\u3044\u308d\u306f\u306b\u307b\u3078\u3068 \u30ab\u30bf\u30ab\u30ca\u30fc \uff76\uff85 \u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002\u300c\u306f\u3044\u300d\u2026\u2026 \u304c \u304b\u3099",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. \uc548\ub155\ud558\uc138\uc694! \u1112\u1161\u11ab \u314b\u314b\u314b",
    "\U00020000\U0002a6d6\u9fff\ufa0e \u1200\u1201 \u10d0\u10d1 \u10a0\u10a1 \u0531\u0561 \u13a0\uab70 \U00010400\U00010428 \u2d30 \uff21\uff42\uff13",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \u2764\ufe0f\U0001f525 \u263a 1\ufe0f\u20e3 \U0001f3f4\U000e0067\U000e0062\U000e007f \U0001fae8",
    "hi\U0001f600there \U0001f600 \U0001f600\U0001f600!! \u200d\u200d a\u200db \u200b\u200bzero \ufeffbom \u00adsoft\u2060",
    "def f(x: int) -> str:\n    if x >= 10:\n        return f\"{x!r:>8}\"  # comment\n\treturn None\n",
    "fn main() { let v: Vec<u8> = vec![0x1F; 32]; println!(\"{:?}\", &v[..]); }\r\n",
    "#include <stdio.h>\nint a[] = {1,2,3};\nfor(;;){++i;i<<=2;}//x\n/* y */ a->b::c",
    '{"key": [1, 2.5, -3e10, null, true], "t": "a\\n\\u00e9"}\n\n\n<p class="x">&amp;</p>',
    "SELECT * FROM t WHERE a='b' AND c<>$1;-- https://example.org/a?b=c&d=%20#e user@mail.example",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 12345678901 123456789012",
    "a1b22c333d4444e55555 3.14159 1,234,567.89 2024-12-31T23:59:59Z 0xDEADBEEF 1e-9 v1.2.3 50% $100 #42 7th",
    "x  12 x   345 x 1 \u00a0 77 (1234)[56789] 1\u00b2\u00b3\u00bd4 \u0661\u0662\u0663\u0664\u0665\u0666\u0667 12\uff13\uff14",
    "one two  three   four    five     six\tseven\t\teight\n\nnine\n\n\n\nten \n eleven\t\n \n\ttwelve \r\n thirteen\r\r\n\n end  ",
    "   lead", "trail   ", " ", "  ", "   ", "       ", "                    x", "\t", "\t\t\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\r\n", "\r\n\r\n", "\r",
    " \t \n \t x", "a\n\n\n   b", "a   \n   b", "a \r\n \r\n b", "a\u00a0b\u00a0\u00a0c \u00a0d", "\u00a0", "\u3000\u3000x\u3000\u3002", "a\u2003b\u2009c\u200ad\u2028e\u2029f\u202fg\u205fh\u1680i\u0085j",
    "\u2028\n\u2029", "\u0085\u0085", "\x0b\x0c x\x0b\x0cy", "\x1c\x1d\x1e\x1fx", "a\x00b\x00\x00c", "\x01\x02\x7f\x80\x9f", "\u180e\ufffe\uffff\ue000\U0010ffff", "\ufffd\ufffd?",
    "!!!", "...", "\u2026\u2026", "?!?!", " !", " ?x", "(a)", " (a) ", "[[x]]", "a/b\\c", "\\n\\t", "--\n", "-->\n\n", ".\r\n", "...\n\n\n   x", "a.\n\nB", "//\n/", "!/\n/\n", "'", "''", " '", "' ", "'s", " 's", "'S", "x's", "\n's", "1's", "'\n", "'stuff 'llama 'dylan 'mean 'rears 'sS", "x'stu'lla'dy", "!'stu", "{x};\r\n};\n]/\n",
    "^$+<=>|~`", "a^b$c+d<e=f>g|h~i`j", " $ + < = > ", "\u20ac\u00a3\u00a5\u00a2 \u00a9\u00ae\u2122 \u2190\u2192 \u2211\u222b \u00b1\u00d7\u00f7 \u2550\u2551", "\u00ab\u00bb\u201c\u201d\u201e \u2014\u2013\u2012 \u00bf\u00a1 \u00a7\u00b6\u2020",
    "\u0300\u0301\u0302", "a\u0300\u0301\u0302b", " \u0301 \u0302", "1\u0301 !\u0301", "\u093f\u0940", "\u20dd\u20dea",
    "\u037e\u0387 \u055a\u0589 \u066a\u066b \u0964\u0965 \u104a\u104b \uff0c\uff0e\uff1a \ufe30\ufe4f",
    "<s>", "</s>", "<unk>", "a <s> b </s>c<unk>d", "<s><s>", "<0x0A>", "<0x41><0xFF>", "[UNK] [PAD] [CLS] <mask> x <mask>", "hello <mask>  , \n<mask> world",
    "<|begin_of_text|>Hi", "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|>\n\n<|im_end|>  <|endoftext|>",
    "<|im_start|", "|im_start|>", "<|im_start|><|im_start|>", "< |im_end|>", "<|IM_END|>", "<<|im_end|>>", "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi",
    "<|user|>\n Hi<|end|>\n<|assistant|>\n ok  <|end|>x", "<start_of_turn>user\nhi<end_of_turn>\n", "<bos><eos><pad>",
    "<think>\nhm\n</think>\n\nok", "a<think>b</think>c", "x <think> y", "<think>!x", "<thi", "nk>!x", "x[[a]]]y [[a]] a]]]", "a tool call b", "a  tool call  b", "atool callb", " leading word", "x leading", "trailing  word",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "<|file_sep|><|repo_name|><|fim_pad|>", "<EOT>[EOT]_<EOT>", "<|channel|>final<|message|>x", "<|reserved_unused_0|><|reserved_1|>",
    "a b", f"{BLANK}a{BLANK}{BLANK}b", f"{BLANK}", f" {BLANK} ", f"x{BLANK}<user>y", f"{BLANK}<user>", " <user>",
    "unmergeable words: xyzzy plugh", " xyzzy", "xyzzy", "xyzzyxyzzy", " plugh", "\u65e5\u66dc", "\u65e5", "\u65e5\u66dc\u65e5", "12345", " 12345", "777", "\n\n\n\n\n", "?!?!?!", "zqzq", "ZQZQ zqzq", "\u00df\u1e9e\u0178", "IMGIMGABCDZ<sentinel:12>IMGIMGZ",
    "", "a", "\u00e9", "e\u0301", "\U0001f600", "\u4f60", "\ud55c", "\u1112\u1161\u11ab", "\u0958\u0915\u093c", "aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababab", "hellohellohello", "0000000000", "----------", "==========\n", "\U0001f600\U0001f600\U0001f600\U0001f600",
]  # fmt: skip
FRAGMENTS = [
    *"abcdeHTS019.,;:!?'\"()[]{}<>|/\\@#$%^&*+=_`~-", " ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2009", "\u0085", "\x0b", "\x00", "\x1f",
    "the", "The", " and", "ing", "HTTP", "camelCase", "'s", "'S", "'ll", "'RE", "'\u017f", "don't", "12", "345", "6789", "1234567", "\u00bd", "\u00b2", "\u0663", "\uff13",
    "\u00e9", "e\u0301", "\u0301", "\u00df", "\u01c5", "\u02b0", "\u03b1\u03b2", "\u03a9", "\u0436\u0443", "\u0416", "\u0643\u064a\u0641", "\u060c", "\u064e", "\u05e9\u05dc", "\u0928\u0940", "\u0964", "\u0e19\u0e49", "\u4f60\u597d", "\u3002", "\u3042", "\u30ab\u30fc", "\u3099", "\ud55c\uad6d", "\u3005", "\u3007", "\U00020000", "\ufa0e",
    "\U0001f600", "\U0001f44d\U0001f3fd", "\u200d", "\ufe0f", "\u20ac", "\u2026", "\u2014", "\u201c", "\ufffd", "\ue000", "\u0378", "\u200b", "\u00ad",
    "<|im_end|>", "<|im_start|>", "<s>", "</s>", "<think>", "<mask>", "<unk>", BLANK, "xyzzy", "12345", "tool call", "://", "->", "\u00a0\n", " \n ",
]  # fmt: skip
MIXTURES = 120
# What is merged first, since a merge inside of these must not stand for the one over the cut.
OFTEN = [
    "stu", "lla", "sS", "dy", "me", "rea", "tT", "\r\n", "\n/", "\n\n", "/\n", ");", "\u30ab\u30fc", "\u0301\u0302",
]  # fmt: skip
# Words that only ignoring the merges can give.
WHOLE = [
    " xyzzy", "xyzzy", " plugh", "\u65e5\u66dc", "12345", " 12345", "777", "\n\n\n\n\n", "?!?!?!", "ZQZQ", " unmergeable",
    "       ", "'lL", "1234567", "<|IM", " HTTPServer", "\u00c4\u00d6", "xyzzyxyzzy",
]  # fmt: skip
TEXTS = list(dict.fromkeys(SENTENCES))
# What is in no text of the training, so that no merge makes a special token of the byte-level vocabulary.
SPECIAL = re.compile(
    r"<\|?/?[a-z_]+\|?>|<\||\|>|<th|nk>|\[PAD\]|<0x|EOT|xyzzy|plugh|IMG|ZQ|unm|12345|tool call|\[\[a|a\]\]"
)


def mixtures() -> list[str]:
    generator = random.Random("gguf_tokenizers/mixtures")
    return ["".join(generator.choices(FRAGMENTS, k=generator.randint(4, 28))) for _ in range(MIXTURES)]


def cuts(name: str, longest: int) -> Iterator[str]:
    """Short pieces of the texts, most often where a pre-tokenizer may cut, for tokens that do not respect words."""
    generator = random.Random(f"gguf_tokenizers/{name}")
    yield from OFTEN * 200
    for text in [*TEXTS, *mixtures()]:
        # llama.cpp reads the texts of tokens up to a zero.
        for part in SPECIAL.split(text.replace("\0", "")):
            yield from part.split(" ")
            for start in range(len(part) - 1):
                kinds = [unicodedata.category(letter) for letter in part[start : start + 2]]
                is_word = kinds[0] == kinds[1] and kinds[0][0] == "L"
                yield from [part[start : start + 2]] * (1 if is_word else 6)
                yield part[start : start + generator.randint(2, longest)]


# --- The files


@dataclass
class Vocabulary:
    """What a file says, as llama.cpp's keys and their values; `entries` are tokens with their types."""

    model: str
    entries: list[tuple[str, TokenType]] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, kind: TokenType, texts: list[str]) -> None:
        self.entries += [(text, kind) for text in texts]

    def id(self, text: str) -> int:
        return [token for token, _ in self.entries].index(text)

    def metadata(self, pre: str, special: dict[str, int]) -> Json:
        assert len({text for text, _ in self.entries}) == len(self.entries)
        values: Json = {
            "general.architecture": "llama",
            "general.name": "vocabulary",
            f"{KEY}model": self.model,
            f"{KEY}pre": pre,
            f"{KEY}tokens": [text for text, _ in self.entries],
            f"{KEY}token_type": [int(kind) for _, kind in self.entries],
        }
        if self.scores:
            values[f"{KEY}scores"] = self.scores
        values[f"{KEY}merges"] = self.merges
        return values | {f"{KEY}{name}_token_id": token for name, token in special.items()}


def trained(tokenizer: Tokenizer, name: str, size: int, alphabet: list[str]) -> tuple[list[str], list[str]]:
    """The tokens in their order, and the merges."""
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=alphabet, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(cuts(name, 7), trainer)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return vocabulary, [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def byte_level() -> Json:
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = alphabet
    tokens, merges = trained(tokenizer, "bpe", 2600, sorted(pre_tokenizers.ByteLevel.alphabet()))
    file = Vocabulary("gpt2", merges=merges)
    file.add(TokenType.NORMAL, tokens)
    encoded = [alphabet.pre_tokenize_str(text)[0][0] for text in WHOLE]
    file.add(TokenType.NORMAL, [text for text in encoded if text not in tokens])
    # Not of the alphabet; the name of a token that ends generation whatever its type; one that only marks a place.
    file.add(TokenType.NORMAL, ["日", "</s>", "<|fim_prefix|>", "[PAD]"])
    file.add(TokenType.UNUSED, ["[PAD0]", "<|reserved_1|>"])
    file.add(TokenType.BYTE, ["<0x41>"])
    file.add(TokenType.UNKNOWN, ["<unk>"])
    file.add(TokenType.CONTROL, ["<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    file.add(TokenType.CONTROL, ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<mask>", "<|channel|>"])
    file.add(TokenType.CONTROL, ["<|reserved_unused_0|>", "<|fim_suffix|>", "<|file_sep|>", "<|repo_name|>", "<s>"])
    file.add(TokenType.USER_DEFINED, ["<think>", "</think>", "<thi", "nk>!x", "[[a", "a]]]", "tool call", " leading"])
    file.add(TokenType.USER_DEFINED, ["trailing ", " " * 16, "\t\t\t", f"{BLANK}<user>", "Äx\n"])
    return file.metadata("gpt-2", {"bos": file.id("<|begin_of_text|>"), "eos": file.id("<|endoftext|>")})


def sentence_piece() -> Json:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never", split=False)
    tokens, merges = trained(tokenizer, "spm", 1500, [])
    letters = [token for token in tokens if len(token) == 1]
    merged = [token for token in tokens if len(token) > 1]
    file = Vocabulary("llama", merges=merges)
    file.add(TokenType.UNKNOWN, ["<unk>"])
    file.add(TokenType.CONTROL, ["<s>", "</s>"])
    file.add(TokenType.BYTE, [f"<0x{byte:02X}>" for byte in range(256)])
    # As in Gemma's files: runs of blanks as they are.
    file.add(TokenType.USER_DEFINED, [" " * count for count in (2, 3, 4, 8)])
    file.add(TokenType.USER_DEFINED, ["\n\n", "\t\t\t", "<think>", "</think>", "<thi", "nk>!x", "[[a", "a]]]"])
    file.add(TokenType.USER_DEFINED, ["tool call", " leading", "trailing ", f"{BLANK}<user>"])
    file.scores = [0.0] * len(file.entries)
    # No one can make `xyzzy`; the text of a byte token, of a control token and of an unused one can be made.
    pieces = [*merged, *"xyzzy <0 <0x <0x0 <s <u <un <unu <unus <unuse <unused <unused0".split()]
    pieces += [token for token in ("<", "0", "x", "s", ">", "/") if token not in letters]
    # Characters that only bytes can spell, so that falling back is tried beside the others.
    rare = set("\u0958\u0178\u2551\u212b\ufa0e\u314b\u10a1\U0001fae8\u2020\ue000\u0149")
    pieces += [token for token in letters if token not in rare]
    file.add(TokenType.NORMAL, [piece for piece in dict.fromkeys(pieces) if piece not in {t for t, _ in file.entries}])
    normal = len(file.entries) - len(file.scores)
    file.scores += [-float(rank) for rank in range(normal)]
    controls = "<|begin_of_text|> <|im_start|> <|im_end|> <|endoftext|> <|user|> <|assistant|> <|end|>".split()
    rest = Vocabulary("llama")
    rest.add(TokenType.CONTROL, [*controls, "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>"])
    rest.add(TokenType.UNUSED, ["<unused0>", "<mask>"])
    rest.add(TokenType.NORMAL, ["[EOT]"])
    file.entries += rest.entries
    file.scores += [0.0] * len(rest.entries)
    return file.metadata("default", {"unknown": 0, "bos": 1, "eos": 2})


INTEGERS = {f"{KEY}token_type": gguf.GGUFValueType.INT32, f"{KEY}scores": gguf.GGUFValueType.FLOAT32}


def write_file(path: Path, metadata: Json) -> None:
    """Only metadata, no tensors; values that are null are left out."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if value is None or key == "general.architecture":
            continue
        if isinstance(value, list):
            kind = INTEGERS.get(key, gguf.GGUFValueType.STRING)
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kind)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


# --- llama.cpp


@llama_cpp.llama_log_callback
def ignore(_level: int, _text: bytes, _data: Any) -> None:
    pass


class Reference:
    """llama.cpp's own tokenizer of a file with these metadata."""

    def __init__(self, metadata: Json) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            write_file(path, metadata)
            parameters = llama_cpp.llama_model_default_params()
            parameters.vocab_only = True
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, "llama.cpp does not load this"
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)

    def ids(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), found, room, add_special, parse_special)
        assert count >= 0
        return found[:count]

    def piece(self, token: int, special: bool) -> bytes:
        room = ctypes.create_string_buffer(4096)
        count = llama_cpp.llama_token_to_piece(self.vocabulary, token, room, len(room), 0, special)
        assert count >= 0
        return room.raw[:count]

    def pieces(self) -> Json:
        tokens = range(llama_cpp.llama_vocab_n_tokens(self.vocabulary))
        pieces = [self.piece(token, True) for token in tokens]
        return {
            "pieces": [piece.hex() for piece in pieces],
            "hidden": [token for token in tokens if pieces[token] and not self.piece(token, False)],
            "ends": [token for token in tokens if llama_cpp.llama_vocab_is_eog(self.vocabulary, token)],
        }


# --- The variants


class Goldens:
    def __init__(self, texts: list[str], files: dict[str, Json]) -> None:
        self.texts, self.files = texts, files
        self.variants: list[Json] = []
        self.found: dict[str, list[list[int]]] = {}
        self.pieces: list[Json] = []
        self.all_pieces: dict[str, list[str]] = {}

    def add(self, name: str, file: str, changes: Json, *, parse: bool = True, pieces: bool = False) -> None:
        """The ids of all texts without and with what is added to them."""
        reference = Reference(self.files[file] | changes)
        for add_special in (False, True):
            ids = [reference.ids(text, add_special, parse) for text in self.texts]
            plain = name if add_special else None
            self.record(f"{name}+special" if add_special else name, file, changes, add_special, parse, ids, plain)
        if pieces:
            self.record_pieces(name, file, reference.pieces())
        reference.close()

    def record(
        self,
        name: str,
        file: str,
        changes: Json,
        add_special: bool,
        parse: bool,
        ids: list[list[int]],
        like: str | None,
    ) -> None:
        assert name not in self.found, name
        before, after = [], []
        if like:
            empty = self.texts.index("")
            known = self.found[like]
            split = next(n for n in range(3) if ids[0][n : n + len(known[0])] == known[0])
            before, after = ids[0][:split], ids[0][split + len(known[0]) :]
            assert ids[empty] == before + after
        else:
            like = self.nearest(file, ids)
        base = self.found[like] if like else [None] * len(ids)
        different = {
            str(number): found
            for number, (found, old) in enumerate(zip(ids, base, strict=True))
            if old is None or found != before + old + after
        }
        keys = {key: value for key, value in changes.items() if key != f"{KEY}pre"}
        entry: Json = {"name": name, "file": file}
        if f"{KEY}pre" in changes:
            entry["pre"] = changes[f"{KEY}pre"]
        entry |= {"keys": keys, "add_special": add_special, "parse_special": parse, "like": like}
        self.variants.append(entry | {"before": before, "after": after, "ids": different})
        self.found[name] = ids

    def nearest(self, file: str, ids: list[list[int]]) -> str | None:
        """The earlier variant, without anything added, that shares most."""
        plain = [v["name"] for v in self.variants if v["file"] == file and not v["add_special"]]

        def distance(name: str) -> int:
            return sum(len(new) + 2 for new, old in zip(ids, self.found[name], strict=True) if new != old)

        return min(plain, key=distance, default=None)

    def record_pieces(self, name: str, file: str, found: Json) -> None:
        like = next((entry["name"] for entry in self.pieces if entry["file"] == file), None)
        pieces: Any = found["pieces"]
        self.all_pieces[name] = found["pieces"]
        if like:
            old = self.all_pieces[like]
            pieces = {str(t): piece for t, piece in enumerate(found["pieces"]) if piece != old[t]}
        self.pieces.append({"name": name, "file": file, "like": like} | found | {"pieces": pieces})


def add_byte_level(goldens: Goldens) -> None:
    pre = f"{KEY}pre"
    for name in ["gpt-2", *(name for name in PRES if name != "gpt-2")]:
        goldens.add(name, BPE, {pre: name}, pieces=name == "gpt-2")
    goldens.add("no pre", BPE, {pre: None})
    for name in ("gpt-2", "default", "smollm", "qwen2", "llama-bpe", "tekken", "chatglm-bpe"):
        for bos, eos in itertools.product((None, True, False), repeat=2):
            if (bos, eos) == (None, None):
                continue
            keys = {f"{KEY}add_bos_token": bos, f"{KEY}add_eos_token": eos}
            keys = {key: value for key, value in keys.items() if value is not None}
            if eos is None or name in ("gpt-2", "llama-bpe"):
                goldens.add(f"{name}, bos {bos}, eos {eos}", BPE, {pre: name} | keys)
    for name in ("gpt-2", "llama-bpe"):
        goldens.add(f"{name}, not parsed", BPE, {pre: name}, parse=False)
        for key in ("add_space_prefix", "add_sep_token", "remove_extra_whitespaces", "ignore_merges"):
            for value in (True, False):
                goldens.add(f"{name}, {key} {value}", BPE, {pre: name, f"{KEY}{key}": value})
        types = {f"{KEY}token_type": None}
        goldens.add(f"{name}, no types", BPE, {pre: name} | types, pieces=name == "gpt-2")
    goldens.add("jina-v2-de, not parsed", BPE, {pre: "jina-v2-de"}, parse=False)
    both = {f"{KEY}add_bos_token": True, f"{KEY}add_eos_token": True}
    ids = {f"{KEY}bos_token_id": None, f"{KEY}eos_token_id": None}
    goldens.add("default ids", BPE, {pre: "gpt-2"} | both | ids, pieces=True)
    ids = {f"{KEY}bos_token_id": 1 << 30, f"{KEY}eos_token_id": 5}
    goldens.add("ids out of range", BPE, {pre: "gpt-2"} | both | ids, pieces=True)
    ids = {
        f"{KEY}eot_token_id": 20,
        f"{KEY}eom_token_id": 21,
        f"{KEY}fim_pad_token_id": 22,
        f"{KEY}fim_rep_token_id": 23,
    }
    goldens.add("more ends", BPE, {pre: "gpt-2"} | ids, pieces=True)


def add_sentence_piece(goldens: Goldens) -> None:
    def changes(bos: bool | None = None, eos: bool | None = None, prefix: bool | None = None) -> Json:
        keys = {"add_bos_token": bos, "add_eos_token": eos, "add_space_prefix": prefix}
        return {f"{KEY}{key}": value for key, value in keys.items() if value is not None}

    goldens.add("spm", SPM, {}, pieces=True)
    for bos, eos, prefix in itertools.product((None, True, False), repeat=3):
        if (bos, eos, prefix) == (None, None, None) or (eos is False and prefix is not None):
            continue
        goldens.add(f"spm, bos {bos}, eos {eos}, prefix {prefix}", SPM, changes(bos, eos, prefix))
    for pre in (None, "llama-bpe", "no such thing"):
        goldens.add(f"spm, pre {pre}", SPM, {f"{KEY}pre": pre})
    for prefix in (True, False):
        name = f"spm, prefix {prefix}"
        goldens.add(f"{name}, not parsed", SPM, changes(prefix=prefix), parse=False)
        goldens.add(f"{name}, no scores", SPM, changes(prefix=prefix) | {f"{KEY}scores": None})
        types = {f"{KEY}token_type": None}
        goldens.add(f"{name}, no types", SPM, changes(prefix=prefix) | types, pieces=prefix)
        goldens.add(f"{name}, phi-3", SPM, changes(prefix=prefix) | {"general.name": "Phi-3 Mini"})
    ids = {f"{KEY}bos_token_id": None, f"{KEY}eos_token_id": None, f"{KEY}unknown_token_id": None}
    goldens.add("spm, default ids", SPM, ids, pieces=True)
    goldens.add("spm, other ids", SPM, {f"{KEY}bos_token_id": 300, f"{KEY}eos_token_id": 301}, pieces=True)
    goldens.add("gemma4", SPM, {f"{KEY}model": "gemma4"}, pieces=True)
    goldens.add("gemma4, no bos", SPM, {f"{KEY}model": "gemma4", f"{KEY}add_bos_token": False})
    for name in RAW_PRES:
        goldens.add(f"gpt2 {name}", SPM, {f"{KEY}model": "gpt2", f"{KEY}pre": name})


def make() -> None:
    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    GGUF.mkdir(parents=True, exist_ok=True)
    files = {BPE: byte_level(), SPM: sentence_piece()}
    for name, metadata in files.items():
        write_file(GGUF / name, metadata)
    goldens = Goldens(TEXTS + mixtures(), files)
    add_byte_level(goldens)
    add_sentence_piece(goldens)
    write_goldens(
        GOLDENS / "gguf_tokenizers.json",
        {"source": f"llama.cpp as in llama-cpp-python {llama_cpp.__version__}"},
        texts=[{"text": text} for text in goldens.texts],
        variants=goldens.variants,
        pieces=goldens.pieces,
    )


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    make()
