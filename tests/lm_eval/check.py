"""Shows that lm-eval works against polyskill: its numbers are those that it gets from transformers itself.

    cargo build --release
    python tests/lm_eval/check.py [--polyskill BINARY] [--work DIRECTORY] [--only BASE]

README.md says what is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Of a sum of log-probabilities in f32.
SUM_BOUND = 1e-3
# Between lm-eval's sums and the server's log-probabilities, which are the same numbers.
SAME_BOUND = 1e-5
# Of one token's log-probability on a quantised file: those of `quantised_gguf_stays_close_to_the_dequantised_weights`.
QUANTISED_WORST, QUANTISED_MEAN = 0.45, 0.06
# How much further from f32 on average than transformers with inputs of linear layers in 8 bits.
ROUNDING_FACTOR = 1.25
# By how much a module has to move an average sum, so that mistaking it for the base is seen.
LEAST_EFFECT = 0.5
QUANTISED_QUESTIONS = 16
OK, WRONG = "ok", "WRONG"
DEFAULT_BASE = "smollm2-135m-instruct"


@dataclasses.dataclass
class Row:
    """A line of the table; `difference` is words or the largest difference."""

    base: str
    module: str
    model_type: str
    task: str
    samples: int
    difference: str
    good: bool


@dataclasses.dataclass
class Base:
    name: str
    folder: pathlib.Path
    module: pathlib.Path
    # Whether its tokenizer puts <s> in front.
    adds_bos: bool = False
    # Whether transformers takes a blank off the front of an answer, as it decodes it without the prompt.
    strips: bool = False


def main() -> None:
    options = parse(__doc__)
    work = options.work.resolve()
    binary = options.polyskill.resolve()
    prepare_environment(work)
    gguf = default_gguf(binary)
    default, tiny, tiny_without_bos = prepare(work, gguf)
    rows: list[Row] = []
    if options.only in (None, "tiny"):
        rows += check_base(binary, work, tiny)
        rows += check_texts_of_tiny(binary, work, tiny_without_bos)
    if options.only in (None, "default"):
        rows += check_base(binary, work, default, texts=True)
    if options.only in (None, "quantised"):
        rows += check_quantised(binary, work, gguf, default)
    report(rows)


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--polyskill", type=pathlib.Path, default=ROOT / "target" / "release" / "polyskill")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "lm-eval")
    parser.add_argument("--only", choices=["default", "tiny", "quantised"])
    return parser.parse_args()


def prepare_environment(work: pathlib.Path) -> None:
    """Before Hugging Face's packages are imported: nothing is fetched, and caches stay in the work directory."""
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(work / "huggingface"), TOKENIZERS_PARALLELISM="false")
    # The tasks name their files from here.
    os.chdir(ROOT)


def default_gguf(binary: pathlib.Path) -> pathlib.Path:
    pulled = subprocess.run([binary, "pull", DEFAULT_BASE], stdout=subprocess.PIPE, text=True, check=True)
    return pathlib.Path(pulled.stdout.strip().splitlines()[-1])


def prepare(work: pathlib.Path, gguf: pathlib.Path) -> tuple[Base, Base, Base]:
    import bases

    default = bases.default_base(work, gguf)
    tiny = bases.tiny_base(work)
    without_bos = bases.tiny_base_without_bos(work, tiny)
    default_module = bases.module(work, default, "default", spread=0.1)
    tiny_module = bases.module(work, tiny, "tiny", spread=0.05)
    return (
        Base("default", default, default_module),
        Base("tiny", tiny, tiny_module, adds_bos=True, strips=True),
        Base("tiny-no-bos", without_bos, tiny_module),
    )


@contextlib.contextmanager
def targets(binary: pathlib.Path, work: pathlib.Path, base: Base):
    """The base and its module on a server: what a request names, and the module behind it."""
    import evaluate
    import serve

    with serve.server(binary, base.folder, base.name, base.module.parent, work / "server.log") as address:
        named = [(base.name, None), (base.module.name, base.module)]
        yield [(evaluate.Target(address, name, base.folder, base.adds_bos), module) for name, module in named]


def check_base(binary: pathlib.Path, work: pathlib.Path, base: Base, texts: bool = False) -> list[Row]:
    """All tasks in tokens, with `texts` also those in texts, and the chat; on the base and its module."""
    import evaluate

    tasks = [evaluate.QUESTIONS, evaluate.SHORT, evaluate.LONG]
    rows, references = [], []
    with targets(binary, work, base) as served:
        for target, module in served:
            reference = evaluate.hf(target, module, tasks)
            references.append(reference)
            found = evaluate.completions(target, tasks, tokens=True)
            rows += compare_tasks(base, target.model, "completions, tokens", found, reference)
            if texts:
                # Windows of a long text begin inside of words, which as texts become other tokens.
                found = evaluate.completions(target, tasks[:2], tokens=False)
                rows += compare_tasks(base, target.model, "completions, texts", found, reference)
            answers = evaluate.hf(target, module, [evaluate.ANSWERS], chat=True)
            found = evaluate.chat_completions(target, [evaluate.ANSWERS])
            rows += compare_answers(base, target.model, found, answers)
    rows.append(module_differs(base, *references, evaluate.QUESTIONS))
    return rows


def check_texts_of_tiny(binary: pathlib.Path, work: pathlib.Path, base: Base) -> list[Row]:
    """Texts on a base with SentencePiece's rules. README.md says why it has no <s> and only this task."""
    import evaluate

    rows = []
    with targets(binary, work, base) as served:
        for target, module in served:
            reference = evaluate.hf(target, module, [evaluate.QUESTIONS])
            found = evaluate.completions(target, [evaluate.QUESTIONS], tokens=False)
            rows += compare_tasks(base, target.model, "completions, texts", found, reference)
    return rows


def compare_tasks(base: Base, model: str, model_type: str, found: dict, reference: dict) -> list[Row]:
    return [
        compare_sums(base, model, model_type, task, found[task], reference[task]) for task in sorted(found)
    ]


def compare_sums(base: Base, model: str, model_type: str, task: str, found: list, reference: list) -> Row:
    """Sums of log-probabilities, and where there is one, whether the tokens are the likeliest."""
    assert len(found) == len(reference), f"{task}: {len(found)} results, expected {len(reference)}"
    found, reference = list(map(scored, found)), list(map(scored, reference))
    difference = largest(abs(mine[0] - theirs[0]) for mine, theirs in zip(found, reference))
    greedy = all(mine[1] == theirs[1] for mine, theirs in zip(found, reference))
    count = sum(theirs[1] is True for theirs in reference)
    text = f"{difference:.1e}" + (f", {count} greedy" if count else "") + ("" if greedy else ", is_greedy differs")
    good = bool(found) and difference <= SUM_BOUND and greedy
    return Row(base.name, model, model_type, task, len(found), text, good)


def scored(responses: list) -> tuple[float, bool | None]:
    """The one response to a request: a pair for a choice, a number for a whole text."""
    (response,) = responses
    return response if isinstance(response, tuple) else (response, None)


def largest(values) -> float:
    """The largest value; no value at all, or one that is no number, is worse than any bound."""
    values = list(values)
    return max(values) if values and all(value == value for value in values) else float("inf")


def compare_answers(base: Base, model: str, found: dict, reference: dict) -> list[Row]:
    rows = []
    for task, theirs in reference.items():
        mine = found[task]
        assert len(mine) == len(theirs), f"{task}: {len(mine)} results, expected {len(theirs)}"
        wrong = [(a, b) for (a,), (b,) in zip(mine, theirs) if as_decoded_alone(base, a) != b]
        for a, b in wrong:
            print(f"{base.name}, {model}: answered {a!r}, expected {b!r}")
        # Answers that are all empty would be equal too.
        good = not wrong and any(text for (text,) in theirs)
        row = Row(base.name, model, "chat-completions", task, len(mine), f"{len(wrong)} texts", good)
        rows.append(row)
    return rows


def as_decoded_alone(base: Base, answer: str) -> str:
    return answer.removeprefix(" ") if base.strips else answer


def module_differs(base: Base, of_base: dict, of_module: dict, task: str) -> Row:
    """The module's sums are not those of the base, by the reference alone."""
    of_base, of_module = ([scored(entry)[0] for entry in found[task]] for found in (of_base, of_module))
    effect = statistics.fmean(abs(a - b) for a, b in zip(of_base, of_module))
    text = f"moved by {effect:.1f}"
    return Row(base.name, base.module.name, "hf, base", task, len(of_base), text, effect >= LEAST_EFFECT)


def check_quantised(binary: pathlib.Path, work: pathlib.Path, gguf: pathlib.Path, base: Base) -> list[Row]:
    """The quantised file itself, against f32 and against the server's own log-probabilities."""
    import evaluate
    import quantised
    import serve

    none = work / "no-modules"
    none.mkdir(exist_ok=True)
    exact: list[list[float]] = []
    rows: list[Row] = []
    for bits in (16, 8):
        config = work / f"activations-{bits}.toml"
        config.write_text(f"[engine]\nactivation_bits = {bits}\n")
        with serve.server(binary, gguf, gguf.stem, none, work / "server.log", config) as address:
            target = evaluate.Target(address, gguf.stem, base.folder, base.adds_bos)
            samples = quantised.samples(target, evaluate.QUESTIONS, QUANTISED_QUESTIONS)
            served = [quantised.engine_logprobs(target, sample) for sample in samples]
        exact = exact or quantised.transformers_logprobs(base.folder, samples)
        pairs = list(zip(samples, served))
        same = largest(abs(sample.sum - sum(token.logprob for token in tokens)) for sample, tokens in pairs)
        greedy = all(sample.is_greedy == all(token.rank == 1 for token in tokens) for sample, tokens in pairs)
        apart = distances([[token.logprob for token in tokens] for tokens in served], exact)
        worst, mean = largest(apart), statistics.fmean(apart)

        def line(task: str, count: int, difference: str, good: bool) -> Row:
            return Row(gguf.stem, "base", f"completions, {bits} bits", task, count, difference, good)

        rows.append(line("own numbers", len(samples), f"{same:.1e}", same <= SAME_BOUND and greedy))
        rows.append(line("f32, worst token", len(apart), f"{worst:.4f}", worst <= QUANTISED_WORST))
        if bits == 16:
            rows.append(line("f32, mean token", len(apart), f"{mean:.4f}", mean <= QUANTISED_MEAN))
            continue
        rounded = quantised.transformers_logprobs(base.folder, samples, rounded=True)
        expected = statistics.fmean(distances(rounded, exact))
        good = mean <= ROUNDING_FACTOR * expected
        rows.append(line("mean, 8-bit rounding", len(apart), f"{mean:.3f} / {expected:.3f}", good))
    return rows


def distances(found: list[list[float]], reference: list[list[float]]) -> list[float]:
    pairs = zip(found, reference, strict=True)
    return [abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)]


def report(rows: list[Row]) -> None:
    head = ("base", "model", "model type", "task", "samples", "difference", "")
    lines = [head] + [
        (row.base, row.module, row.model_type, row.task, str(row.samples), row.difference, verdict(row))
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    if not rows or any(verdict(row) == WRONG for row in rows):
        sys.exit("lm-eval does not get what it should")


def passed(row: Row) -> bool:
    return row.good and row.samples > 0


def verdict(row: Row) -> str:
    return OK if passed(row) else WRONG


if __name__ == "__main__":
    main()
