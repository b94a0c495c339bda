"""What one hostile client costs the others: a light client is measured alone, beside as many well-behaved streams, and
beside each kind of load. Standard library alone.

    polyskill serve --config tests/load/server.toml --allow-unsigned --listen 127.0.0.1:8500 &
    python3 tests/load/overload.py 127.0.0.1:8500

The keys of tests/load/server.toml make the light client another tenant than the loads.
"""

import asyncio
import json
import random
import sys
import time

LIGHT, HEAVY = "light", "heavy"
SECONDS = 8.0


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class Server:
    """The server under test."""

    def __init__(self, address):
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)

    async def send(self, path, body=None, key=LIGHT, timeout=120.0):
        """Sends a request; gives the status, the times of the pieces of a stream, and the body."""
        begin = time.monotonic()
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        times, whole = [], b""
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            try:
                writer.write(head.encode() + data)
                await writer.drain()
                while piece := await reader.read(1 << 16):
                    whole += piece
                    if b'"content":"' in piece and b'"content":""' not in piece:
                        times.append(time.monotonic() - begin)
            finally:
                writer.close()
        status = int(whole.split(b" ", 2)[1]) if whole else 0
        return status, times, whole

    async def light(self, seconds):
        """A light client: short chats, one after the other. Gives first tokens and gaps, in milliseconds."""
        first, gaps, end = [], [], time.monotonic() + seconds
        while time.monotonic() < end:
            question = f"Plural of context? {random.randrange(10**6)}"
            body = {"max_tokens": 16, "temperature": 0, "ignore_eos": True, "stream": True,
                    "messages": [{"role": "user", "content": question}]}
            status, times, _ = await self.send("/v1/chat/completions", body)
            assert status == 200, status
            first += [1e3 * times[0]] if times else []
            gaps += [1e3 * (b - a) for a, b in zip(times, times[1:])]
            await asyncio.sleep(0.1)
        return first, gaps

    async def health(self, seconds):
        """The longest answer of `/health`, in milliseconds."""
        longest, end = 0.0, time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.monotonic()
            status, _, _ = await self.send("/health")
            assert status == 200, status
            longest = max(longest, 1e3 * (time.monotonic() - begin))
            await asyncio.sleep(0.02)
        return longest


def tokens(count):
    return [random.randrange(1_000, 40_000) for _ in range(count)]


DIGITS = "".join(random.choice("0123456789") for _ in range(4_000_000 - 64))

# Each load: the path, the body, and how many clients send it again and again.
LOADS = {
    "4 well-behaved streams": ("/v1/chat/completions", lambda: {
        "max_tokens": 32, "ignore_eos": True,
        "messages": [{"role": "user", "content": f"Tell a story. {random.random()}"}]}, 4),
    "8 bodies of 4 MB to /tokenize": ("/tokenize", lambda: {"prompt": DIGITS}, 8),
    "1 prompt of 4,096 tokens": ("/v1/completions", lambda: {"prompt": tokens(4_096), "max_tokens": 1}, 1),
    "4 prompts of 4,096 tokens": ("/v1/completions", lambda: {"prompt": tokens(4_096), "max_tokens": 1}, 4),
    "200 requests queued": ("/v1/completions", lambda: {
        "prompt": tokens(32), "max_tokens": 64, "ignore_eos": True}, 200),
    "4 with max_tokens 8100": ("/v1/completions", lambda: {
        "prompt": tokens(16), "max_tokens": 8_100, "ignore_eos": True}, 4),
    "16 choices, twice": ("/v1/chat/completions", lambda: {
        "n": 16, "max_tokens": 64, "ignore_eos": True, "messages": [{"role": "user", "content": "Tell a story"}]}, 2),
    "512 clients": ("/v1/completions", lambda: {"prompt": tokens(48), "max_tokens": 16, "ignore_eos": True}, 512),
}


async def measure(server, load):
    """The light client and `/health` beside a load; None is no load."""
    stop, statuses = asyncio.Event(), {}

    async def client():
        path, body, _ = LOADS[load]
        while not stop.is_set():
            try:
                status, _, _ = await server.send(path, body(), HEAVY, 300)
            except (OSError, TimeoutError):
                status = 0
            statuses[status] = statuses.get(status, 0) + 1
            if status != 200:
                await asyncio.sleep(1.0)

    clients = [asyncio.create_task(client()) for _ in range(LOADS[load][2])] if load else []
    await asyncio.sleep(1.0)
    (first, gaps), health = await asyncio.gather(server.light(SECONDS), server.health(SECONDS))
    stop.set()
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.sleep(2.0)
    return first, gaps, health, statuses


async def fairness(server):
    """Ten tenants with weights, one of them flooding: their shares of generated tokens, against the weights."""
    weights = {f"t{at}": 1 + at % 3 for at in range(10)}
    generated, stop = dict.fromkeys(weights, 0), asyncio.Event()

    async def client(name):
        while not stop.is_set():
            body = {"prompt": tokens(16), "max_tokens": 24, "ignore_eos": True}
            try:
                status, _, _ = await server.send("/v1/completions", body, name, 300)
            except (OSError, TimeoutError):
                continue
            if status == 200 and not stop.is_set():
                generated[name] += 24
            elif status != 200:
                await asyncio.sleep(0.5)

    clients = [asyncio.create_task(client(name)) for name in weights for _ in range(100 if name == "t0" else 12)]
    await asyncio.sleep(5.0)
    generated.update(dict.fromkeys(weights, 0))
    await asyncio.sleep(45.0)
    stop.set()
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    total, weight = sum(generated.values()), sum(weights.values())
    print("\n| tenant | weight | share | of its due |\n|---|---|---|---|")
    for name in weights:
        share = generated[name] / total
        print(f"| {name} | {weights[name]} | {100 * share:.1f} % | {share * weight / weights[name]:.3f} |")


async def main():
    server = Server(sys.argv[1])
    chosen = sys.argv[2:]
    base = None
    print("| load | first token p50 / p99 | x | between tokens p50 / p99 | x | /health | statuses of the load |")
    print("|---|---|---|---|---|---|---|")
    for load in [None, *LOADS]:
        if load is not None and chosen and not any(word in load for word in chosen + ["well-behaved"]):
            continue
        first, gaps, health, statuses = await measure(server, load)
        row = (percentile(first, 0.5), percentile(first, 0.99), percentile(gaps, 0.5), percentile(gaps, 0.99))
        if load == "4 well-behaved streams":
            base = row
        times = (f"{row[0] / base[0]:.1f}", f"{row[3] / base[3]:.1f}") if base else ("", "")
        print(f"| {load or 'none'} | {row[0]:.0f} / {row[1]:.0f} ms | {times[0]} | {row[2]:.1f} / {row[3]:.1f} ms "
              f"| {times[1]} | {health:.0f} ms | {statuses} |", flush=True)
    if not chosen or "tenants" in chosen:
        await fairness(server)


asyncio.run(main())
