"""What publishing a command costs: one process, one broker, distinct topics, payloads of 250 bytes at qos 1.

    python -m benchmarks.publish [--messages 100000] [--slow-messages 20000] [--rounds 3] [--connections 1 2 4 8]

The publisher is a process of its own on one core, mosquitto has the other. `publish_many` gives MqttPublisher a
thousand messages at a time, `publish` one by one from as many callers as may be in flight. Beside them stand aiomqtt,
called so too, and paho, on which it stands, driven without asyncio: one connection, many messages a turn, its own
callback. `emqx_api` goes to a server that answers as EMQX's REST API does and does nothing else; its rate is that
server's.

Before anything is timed each publisher publishes to a subscriber, and every message must arrive, once, as it was.
Mosquitto sends acknowledgements at once, as EMQX does (`set_tcp_nodelay`); left to its default, the last few of a
thousand would wait 40 ms for the kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import orjson
import paho.mqtt.client as paho
import structlog
import uvloop
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.deployment import wait_for_port
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, Usage, describe, farewell, on_core, say
from ota_hook.ports.commands import Message, Publisher
from ota_hook.publish.emqx_api import EmqxApiPublisher
from ota_hook.publish.mqtt import MqttPublisher
from tests.held_ports import free_port
from tests.integration.emqx_api_server import KEY, SECRET, EmqxApi

GOAL_PER_SECOND = 8_000
IN_FLIGHT = 100
_PIECE = 1_000
_CHECKED = 5_000
_ARRIVE_S = 30.0
_SLOW = frozenset({"aiomqtt", "paho"})


def message(number: int) -> Message:
    return Message(f"command_send/DU_{number:013}", f'{{"id":{number}}}'.encode().ljust(250), 1)


# ---- the process that publishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the process does: so many messages to that port, over so many connections."""

    publisher: str
    port: int
    connections: int
    messages: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, as the process saw it."""

    seconds: float
    cpu: float
    waited: float


@contextlib.contextmanager
def measuring() -> Iterator[Callable[[], Measured]]:
    before, began, worked = Usage.of(os.getpid()), time.monotonic(), time.process_time()

    def measured() -> Measured:
        seconds, cpu = time.monotonic() - began, time.process_time() - worked
        return Measured(seconds, cpu, (Usage.of(os.getpid()) - before).waited)

    yield measured


async def _publish_many(publisher: Publisher, messages: int) -> None:
    for start in range(0, messages, _PIECE):
        piece = [message(number) for number in range(start, min(start + _PIECE, messages))]
        if any(await publisher.publish_many(piece)):
            sys.exit("not every message was taken: nothing is said of it")


async def _one_by_one(publish: Callable[[Message], Coroutine[None, None, None]], messages: int, callers: int) -> None:
    numbers = iter(range(messages))

    async def call() -> None:
        for number in numbers:
            await publish(message(number))

    await asyncio.gather(*(call() for _ in range(callers)))


async def run_ours(task: Task) -> Measured:
    publisher = MqttPublisher(
        f"mqtt://127.0.0.1:{task.port}", connections=task.connections, in_flight_max=IN_FLIGHT, ack_timeout_s=30
    )
    await publisher.start()
    await publisher.wait_connected()
    await asyncio.sleep(0.2)  # until all of them are
    with measuring() as measured:
        if task.publisher == "publish_many":
            await _publish_many(publisher, task.messages)
        else:
            await _one_by_one(
                lambda given: publisher.publish(given.topic, given.payload, qos=given.qos),
                task.messages,
                IN_FLIGHT * task.connections,
            )
        result = measured()
    await publisher.stop()
    return result


async def run_emqx_api(task: Task) -> Measured:
    publisher = EmqxApiPublisher(
        f"http://127.0.0.1:{task.port}", key=KEY, secret=SECRET, connections=task.connections, timeout_s=30
    )
    await publisher.start()
    with measuring() as measured:
        await _publish_many(publisher, task.messages)
        result = measured()
    await publisher.stop()
    return result


async def run_aiomqtt(task: Task) -> Measured:
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(aiomqtt.Client("127.0.0.1", task.port, max_inflight_messages=IN_FLIGHT))
            for _ in range(task.connections)
        ]
        for client in clients:
            client.pending_calls_threshold = sys.maxsize  # it would warn of what is meant

        async def publish(given: Message) -> None:
            client = clients[hash(given.topic) % len(clients)]
            await client.publish(given.topic, given.payload, qos=given.qos, timeout=30)

        with measuring() as measured:
            await _one_by_one(publish, task.messages, IN_FLIGHT * task.connections)
            return measured()


def run_paho(task: Task) -> Measured:
    client = paho.Client(callback_api_version=CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    acknowledged = 0

    def count(*_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1

    client.on_publish = count
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", task.port)
    while not client.is_connected():
        client.loop_read()
    sent = 0
    with selectors.DefaultSelector() as selector, measuring() as measured:
        selector.register(client.socket(), selectors.EVENT_READ)  # type: ignore[arg-type]
        while acknowledged < task.messages:
            while sent < task.messages and sent - acknowledged < IN_FLIGHT:
                client.publish(*message(sent))
                sent += 1
            selector.select()
            client.loop_read()
        result = measured()
    client.disconnect()
    return result


_RUNS: dict[str, Callable[[Task], Coroutine[None, None, Measured]]] = {
    "publish_many": run_ours,
    "publish": run_ours,
    "emqx_api": run_emqx_api,
    "aiomqtt": run_aiomqtt,
}


def publish_here(task: Task) -> None:
    """Do it, and print what it cost."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    measured = run_paho(task) if task.publisher == "paho" else uvloop.run(_RUNS[task.publisher](task))
    say(orjson.dumps(measured).decode())


# ---- the script


@contextlib.contextmanager
def run_mosquitto(folder: Path) -> Iterator[int]:
    """Its port."""
    port = free_port()
    config = folder / "mosquitto.conf"
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", "set_tcp_nodelay true", "max_queued_messages 0")
    config.write_text("\n".join(lines))
    with (folder / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen(on_core(LOAD_CORE, ["mosquitto", "-c", str(config)]), stderr=log)  # noqa: S603
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def run_task(task: Task) -> Measured:
    """In a process on the core of what is measured."""
    given = ["--as", task.publisher, "--port", str(task.port), "--over", str(task.connections)]
    command = on_core(
        SERVER_CORE, [sys.executable, "-m", "benchmarks.publish", *given, "--messages", str(task.messages)]
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode:
        sys.exit(f"{task.publisher}: the process ended with {process.returncode}")
    return Measured(**orjson.loads(said))


async def check_arrival(publisher: str, port: int, connections: int) -> None:
    """Every message arrives at a subscriber, once. Ends the script otherwise."""
    async with aiomqtt.Client("127.0.0.1", port) as subscriber:
        await subscriber.subscribe("command_send/+", qos=1)
        await run_task(Task(publisher=publisher, port=port, connections=connections, messages=_CHECKED))
        arrived: list[Message] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVE_S):
                while len(arrived) < _CHECKED or len(subscriber.messages):
                    given = await anext(subscriber.messages)
                    arrived.append(Message(str(given.topic), bytes(given.payload), given.qos))
    if sorted(arrived) != [message(number) for number in range(_CHECKED)]:
        sys.exit(f"{publisher}: {len(arrived)} of {_CHECKED} messages arrived, or others: nothing is timed")


class Table:
    """The runs of each publisher, and their medians."""

    def __init__(self) -> None:
        self.cpu_us: dict[tuple[str, int], float] = {}

    async def measure(self, publisher: str, port: int, connections: int, options: argparse.Namespace) -> None:
        messages = options.slow_messages if publisher in _SLOW else options.messages
        task = Task(publisher=publisher, port=port, connections=connections, messages=messages)
        runs = [await run_task(task) for _ in range(options.rounds)]
        cpu_us = statistics.median(run.cpu for run in runs) / messages * 1e6
        per_second = statistics.median(messages / run.seconds for run in runs)
        waited = statistics.median(run.waited / run.seconds for run in runs)
        self.cpu_us[publisher, connections] = cpu_us
        goal = f"   goal ≥ {GOAL_PER_SECOND:,}/s" if publisher == "publish_many" else ""
        say(
            f"  {publisher:13} {connections} connection{'s' if connections > 1 else ' '} {per_second:9,.0f}/s"
            f"  {cpu_us:6.2f} µs CPU per message  waited {waited:4.0%}{goal}"
        )


async def run_all(options: argparse.Namespace, folder: Path) -> None:
    table = Table()
    with run_mosquitto(folder) as port:
        for publisher in ("publish_many", "publish", "aiomqtt"):
            for connections in options.connections:
                await check_arrival(publisher, port, connections)
        await check_arrival("paho", port, 1)
        say(f"each publisher's {_CHECKED:,} messages arrived at a subscriber, once and as they were; medians:")
        for publisher in ("publish_many", "publish", "aiomqtt"):
            for connections in options.connections:
                await table.measure(publisher, port, connections, options)
        await table.measure("paho", port, 1, options)
    async with answering_api() as port:
        await table.measure("emqx_api", port, 2, options)
    say()
    for other in ("aiomqtt", "paho"):
        ratio = table.cpu_us[other, 1] / table.cpu_us["publish_many", 1]
        say(f"  {other} / publish_many, one connection, CPU per message {ratio:6.1f}")


@contextlib.asynccontextmanager
async def answering_api() -> AsyncIterator[int]:
    """Its port; what it was given is looked at first, and then when all is over."""
    async with EmqxApi().run() as api:
        port = int(api.url.rpartition(":")[2])
        await run_task(Task(publisher="emqx_api", port=port, connections=2, messages=_CHECKED))
        if sorted(api.published) != [message(number) for number in range(_CHECKED)]:
            sys.exit("emqx_api: not every message arrived: nothing is timed")
        api.published.clear()
        yield port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="per round")
    parser.add_argument("--slow-messages", type=int, default=20_000, help="per round of aiomqtt and paho")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 2, 4, 8])
    for name in ("--as", "--port", "--over"):  # how the script starts the process that publishes
        parser.add_argument(name, help=argparse.SUPPRESS, type=str if name == "--as" else int)
    options = parser.parse_args()
    options.connections = sorted({1, *options.connections})
    publisher = vars(options)["as"]
    if publisher is not None:
        publish_here(Task(publisher=publisher, port=options.port, connections=options.over, messages=options.messages))
        return
    if shutil.which("mosquitto") is None:
        sys.exit("mosquitto is missing; run: apt-get install -y mosquitto")
    describe("publish")
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {LOAD_CORE})
    say(f"the publisher on core {SERVER_CORE}, mosquitto on core {LOAD_CORE}; {IN_FLIGHT} in flight per connection")
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run_all(options, Path(name)))
    farewell()


if __name__ == "__main__":
    main()
