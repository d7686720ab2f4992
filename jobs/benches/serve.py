"""Requests per second of `jobs/serve.py` for clients that ask all the time: answered together, against one by one.

The service runs as its command does, with one replica and a thread; the clients are of this process, on loopback, with
one connection each. ``p50`` and ``p99`` are in milliseconds, ``memory`` is the RSS of all processes of the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benches.decode import catalogue, make_base

PACKAGES, SIZE, COLUMNS, UNIT = ("ray", "fastapi", "uvicorn"), "clients", ("titles",), "requests per second"
FACTS, PAIRS = ("p50", "p99", "refused"), ("p50", "p99")
JOB = Path(__file__).parents[1] / "serve.py"
#: Seconds of one measurement, and until the service must be ready.
SECONDS, READY = 10.0, 120.0
HEAD = b"POST /recommend HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    size, seconds = (200, 1.0) if args.quick else (10_681, SECONDS)
    make_base(scratch / "base", size)
    (scratch / "titles.csv").write_text("title\n" + "".join(f'"{title}"\n' for title in catalogue(size)))
    return [
        ({"clients": n, "titles": size, "dtype": "float32", "folder": str(scratch), "seconds": seconds}, ["single"])
        for n in ((4,) if args.quick else (1, 8, 32, 128))
    ]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in ("folder", "seconds")}


def measure(contender: str, clients: int, titles: int, dtype: str, folder: str, seconds: float) -> dict[str, Any]:
    """Answers per second once warm, and the quantiles of their times."""
    import psutil

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, str(JOB), "--policy", f"{folder}/base", "--catalogue", f"{folder}/titles.csv"]
    line += ["--template", "compact", "--device", "cpu", "--port", str(port), "--threads", "1"]
    line += ["--batch", "1"] if contender == "single" else []
    with tempfile.TemporaryFile() as log:
        service = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
        try:
            wait_ready(service, port)
            names = catalogue(titles)
            asyncio.run(load(port, min(clients, 8), seconds / 4, names))  # to warm up
            times, refused, took = asyncio.run(load(port, clients, seconds, names))
            memory = sum(one.memory_info().rss for one in psutil.Process(service.pid).children(recursive=True))
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
    times.sort()
    p50, p99 = (1e3 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return {"rate": len(times) / took, "memory": memory, "p50": p50, "p99": p99, "refused": refused}


def wait_ready(service: subprocess.Popen, port: int) -> None:
    """Wait until the service answers /ready with 200."""
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and service.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the service was not ready in {READY:.0f} s")


async def load(port: int, clients: int, seconds: float, names: list[str]) -> tuple[list[float], int, float]:
    """Let clients ask, each again as soon as it has its answer; returns the times, the refusals, and the seconds."""
    times, refused, begun = list[float](), 0, time.perf_counter()

    async def client(number: int) -> None:
        nonlocal refused
        draw = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - begun < seconds:
            body = json.dumps({"history": draw.sample(names, 10), "k": 10}).encode()
            sent = time.perf_counter()
            writer.write(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:-2])
            await reader.readexactly(int(fields[b"content-length"]))
            if answer.split()[1] == b"200":
                times.append(time.perf_counter() - sent)
            else:
                refused += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times, refused, time.perf_counter() - begun
