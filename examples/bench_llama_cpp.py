"""Measures llama.cpp and polyskill on the same GGUF file, in turns.

    pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36    # built from source, for this CPU
    cargo build --release --bin polyskill
    python examples/bench_llama_cpp.py "$(target/release/polyskill pull smollm2-135m-instruct)"

Prefill is 256 tokens, decode is one token at a time after it, both at batch 1 with all cores.
"""

import os
import statistics
import subprocess
import sys
import time

import llama_cpp

PROMPT_TOKENS = 256
DECODE_TOKENS = 64
ROUNDS = 5


def measure(model, context_params) -> tuple[float, float]:
    """One round: (prefill tokens/s, median decode tokens/s)."""
    context = llama_cpp.llama_init_from_model(model, context_params)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(tokens: list[int], start: int) -> float:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(tokens) - 1
        began = time.perf_counter()
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - began

    decode([1, 2, 3], 0)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    prefill = decode([(at * 7 + 100) % vocab_size for at in range(PROMPT_TOKENS)], 0)
    steps = [decode([500 + at], PROMPT_TOKENS + at) for at in range(DECODE_TOKENS)]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return PROMPT_TOKENS / prefill, 1 / statistics.median(steps[4:])


def main() -> None:
    path = sys.argv[1]
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    model_params = llama_cpp.llama_model_default_params()
    # Weights repacked for AMX crash on virtual machines that announce AMX without enabling it.
    model_params.use_extra_bufts = os.environ.get("EXTRA_BUFFER_TYPES") == "1"
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    threads = len(os.sched_getaffinity(0))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
    params.n_threads = params.n_threads_batch = threads
    print(llama_cpp.llama_print_system_info().decode())
    rounds = []
    for _ in range(ROUNDS):
        rounds.append(measure(model, params))
        time.sleep(0.2)
    prefill = statistics.median(round[0] for round in rounds)
    decode = statistics.median(round[1] for round in rounds)
    print(f"llama.cpp, {threads} threads: prefill {prefill:.0f} tok/s, decode {decode:.1f} tok/s", flush=True)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    subprocess.run([f"{target}/release/polyskill", "bench", "--model", path], check=True)


if __name__ == "__main__":
    main()
