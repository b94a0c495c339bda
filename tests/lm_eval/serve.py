"""A polyskill server for as long as a `with` block runs."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import requests

START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(
    binary: pathlib.Path,
    model: pathlib.Path,
    name: str,
    adapters: pathlib.Path,
    log: pathlib.Path,
    config: pathlib.Path | None = None,
) -> Iterator[str]:
    """Serves a base under a name with the modules of a directory; gives the address."""
    port = free_port()
    empty = log.parent / "no-plugins"
    empty.mkdir(parents=True, exist_ok=True)
    command = [binary, "serve", "--model", model, "--served-model-name", name]
    command += ["--adapters", adapters, "--plugins", empty, "--listen", f"127.0.0.1:{port}"]
    command += ["--config", config] if config else []
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_healthy(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait()


def wait_until_healthy(process: subprocess.Popen, address: str, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"polyskill ended: {log.read_text(errors='replace')}")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        time.sleep(0.1)
    raise SystemExit(f"polyskill did not answer within {START_SECONDS} s, see {log}")
