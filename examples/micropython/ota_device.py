"""A whole device in MicroPython: it reports what it runs, asks, downloads, verifies, installs, and reports again.

Needs `umqtt.simple` (`mip install umqtt.simple`). Copy it, and write `install` for your board: `main` has the rest.

    device = Device("DU_7VFGiJjjv8QoS", "broker.example", password="secret")
    main(device)

With `over_mqtt=True` the firmware comes over the connection to the broker, for boards that can't do HTTP. Everything
else is the same. docs/devices.md explains the protocol, and why it waits where it waits.
"""

import binascii
import hashlib
import json
import os
import random
import socket
import struct
import time

from umqtt.simple import MQTTClient

ANSWER_S = 10  # no answer by then: it was lost, or the cloud is busy
ATTEMPTS = 5
PAUSE_S = 2  # doubled with each attempt, and jittered: a fleet must not come back in one instant
CHECK_EVERY_S = 24 * 3600
PIECE_BYTES = 4096  # what fits into this board's memory, with the MQTT packet around it
KEEPALIVE_S = 60

DOWNLOAD_FAILED, SIZE_DIFFERS, DIGEST_DIFFERS = -2, -3, -3  # what `ota_result` says of them: docs/pushes.md


class Device:
    """One direct device. Its files: `version.txt`, and `firmware.part` with `firmware.json` while it downloads."""

    def __init__(self, name, broker, port=1883, *, password="", over_mqtt=False, folder="."):
        self.name = name
        self.over_mqtt = over_mqtt
        self.client = MQTTClient(name, broker, port, user=name, password=password, keepalive=KEEPALIVE_S)
        self.client.set_callback(self._take)
        self._folder = folder
        self._command = None
        self._piece = None

    # ---- what it says

    def connect(self):
        self.client.connect(clean_session=False)  # the broker keeps what is pushed while the device is away
        self.client.subscribe(self._topic("command_send"), 1)
        if self.over_mqtt:
            self.client.subscribe(self._topic("ota_chunk"), 1)

    def report(self):
        self._say("attributes", {"version": self.version()})

    def check(self):
        """Report and ask until answered. The command, None where nothing came."""
        for attempt in range(ATTEMPTS):
            if attempt:
                pause(attempt)
            self.report()  # it may have been lost as well; an answer goes by what was reported
            self._say("event_report", {"method": "otaCheck", "params": {}})
            command = self.wait_for_command(ANSWER_S)
            if command is not None:
                return command
        return None

    def reply(self, command, result):
        self._say("command_reply", {"method": "otaUpgrade", "params": {"ota_result": result}, "id": command["id"]})

    def _say(self, topic, document):
        self.client.publish(self._topic(topic), json.dumps(document).encode(), qos=1)

    def _topic(self, topic):
        return f"{topic}/{self.name}".encode()

    # ---- what it hears

    def wait_for_command(self, seconds):
        self._listen(seconds, lambda: self._command is not None)
        command, self._command = self._command, None
        return command

    def _listen(self, seconds, is_enough):
        end = time.time() + seconds
        pinged = time.time()
        while not is_enough() and time.time() < end:
            self.client.check_msg()
            if time.time() - pinged > KEEPALIVE_S / 2:
                self.client.ping()
                pinged = time.time()
            time.sleep(0.02)

    def _take(self, topic, payload):
        """Called by the client for whatever comes; also while it waits for an acknowledgement."""
        if topic == self._topic("ota_chunk"):
            self._piece = payload
            return
        try:
            command = json.loads(payload)
        except ValueError:
            return
        if command.get("method") == "otaUpgrade" and command["params"]["module"] == "main":
            self._command = command

    # ---- upgrading

    def upgrade(self, command):
        """Fetch, verify and install. Whether it has to reboot now."""
        params = command["params"]
        result = self._fetch(params)
        if result == 0:
            result = self._verify(params)
        if result == 0:
            self.install(self._path("firmware.part"), params)
        self._forget()
        try:
            self.reply(command, result)
        except OSError:
            pass  # what counts is the version that it reports when it runs it
        return result == 0

    def install(self, path, params):
        """Yours: write the file at `path` to the inactive partition, and have it booted next. Here it is only noted.

        Report `params["version"]` once it runs, never before.
        """
        with open(self._path("version.txt"), "w") as file:
            file.write(params["version"])

    def version(self):
        try:
            with open(self._path("version.txt")) as file:
                return file.read()
        except OSError:
            return "1.0.0"

    def unfinished(self):
        """The command of a download that was cut, None where there is none: go on with it before you ask again."""
        try:
            with open(self._path("firmware.json")) as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def begin(self, command):
        """Note what is being downloaded, so that a cut, or a reboot, costs no more than the piece at hand."""
        known = self.unfinished()
        if known is None or known["params"]["md5"] != command["params"]["md5"]:
            self._forget()
        with open(self._path("firmware.json"), "w") as file:
            json.dump(command, file)

    def _fetch(self, params):
        """0, or why not, after some attempts that each go on where the last one ended."""
        for attempt in range(ATTEMPTS):
            if attempt:
                pause(attempt)
            try:
                if (self._fetch_pieces if self.over_mqtt else self._fetch_http)(params):
                    return 0
            except OSError:
                if self.over_mqtt:
                    raise  # the connection to the broker is gone: connect again, then go on
        return DOWNLOAD_FAILED

    def _fetch_pieces(self, params):
        """Ask for one piece after the other. False where one does not come."""
        with open(self._path("firmware.part"), "ab") as file:
            have = self._have()
            while have < params["size"]:
                wanted = {"module": "main", "version": params["version"], "offset": have, "length": PIECE_BYTES}
                self._piece = None
                self._say("event_report", {"method": "otaChunk", "params": wanted})
                self._listen(ANSWER_S, lambda: self._piece is not None)
                if self._piece is None:
                    return False
                _, offset, length, crc32 = struct.unpack(">QIII", self._piece[:20])
                data = self._piece[20:]
                if offset == have and length == len(data) and crc32 == binascii.crc32(data):
                    file.write(data)
                    have += len(data)
        return True

    def _fetch_http(self, params):
        """One GET from where the file ends. False where the server does not have it now."""
        if not params["url"].startswith("http://"):
            return False  # for https, wrap `link` with your board's ssl, and check the server's certificate
        host, port, path = split_url(params["url"])
        have = self._have()
        if have >= params["size"]:
            return True
        link = socket.socket()
        try:
            link.settimeout(ANSWER_S)
            link.connect(socket.getaddrinfo(host, port)[0][-1])
            head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nRange: bytes={have}-\r\nConnection: close\r\n\r\n"
            link.sendall(head.encode())
            buffer = b""
            while b"\r\n\r\n" not in buffer:
                more = link.recv(512)
                if not more:
                    return False
                buffer += more
            head, _, body = buffer.partition(b"\r\n\r\n")
            status = head.split(b" ", 2)[1]
            if status not in (b"200", b"206"):
                return False
            if status == b"200":
                have = 0
            with open(self._path("firmware.part"), "ab" if have else "wb") as file:
                file.write(body)
                have += len(body)
                while have < params["size"]:
                    body = link.recv(1024)
                    if not body:
                        return False
                    file.write(body)
                    have += len(body)
            return True
        finally:
            link.close()

    def _verify(self, params):
        if self._have() != params["size"]:
            return SIZE_DIFFERS
        digest = hashlib.md5()
        with open(self._path("firmware.part"), "rb") as file:
            while block := file.read(1024):
                digest.update(block)
        return 0 if binascii.hexlify(digest.digest()).decode() == params["md5"] else DIGEST_DIFFERS

    def _have(self):
        try:
            return os.stat(self._path("firmware.part"))[6]
        except OSError:
            return 0

    def _forget(self):
        for name in ("firmware.part", "firmware.json"):
            try:
                os.remove(self._path(name))
            except OSError:
                pass

    def _path(self, name):
        return f"{self._folder}/{name}"


def split_url(url):
    host, _, path = url.partition("://")[2].partition("/")
    host, _, port = host.partition(":")
    return host, int(port or 80), "/" + path


def pause(attempt):
    time.sleep(PAUSE_S * 2 ** (attempt - 1) * (0.5 + random.random()))


def live_once(device, stay_s=CHECK_EVERY_S):
    """From connecting to the next reboot, or until nothing came for `stay_s`. Whether it reboots."""
    device.connect()
    command = device.unfinished() or device.check()
    while True:
        if command is not None and command["params"]["upgrade"]:
            device.begin(command)
            if device.upgrade(command):
                return True
        command = device.wait_for_command(stay_s)  # a push may come any time
        if command is None:
            return False


def main(device):
    """For ever. `machine.reset()` boots what was installed."""
    import machine

    failures = 0
    while True:
        try:
            if live_once(device):
                machine.reset()
            failures = 0
            device.client.disconnect()
        except OSError:
            failures = min(failures + 1, 8)
            pause(failures)
