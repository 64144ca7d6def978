"""The metadata service of one machine (IMDS, both versions) on its own loopback address."""

import asyncio
import contextlib
import json
import secrets
import socket

from runner.rehearsal.machine import Machine

_LONGEST = 21_600  # seconds that a token may be good for


class Imds:
    """Answers HTTP at the machine's address. Lives in the event loop."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tokens: dict[str, float] = {}  # token -> good until, on the loop's clock
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen."""
        birth = self._machine.birth
        # Not served by start_server itself: cancelled in it, it would leave a port open that nobody can close.
        listening = socket.create_server((birth.address, self._machine.settings.imds_port))
        self._server = await asyncio.start_server(self._serve, sock=listening, start_serving=False)
        await self._server.start_serving()

    async def close(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while request := (await reader.readline()).decode("latin-1").split():
                headers = {}
                while line := (await reader.readline()).decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                await reader.readexactly(int(headers.get("content-length", "0")))
                status, text = self._answer(request[0], request[1], headers)
                keep = "close" if headers.get("connection", "").lower() == "close" else "keep-alive"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
                    f"Connection: {keep}\r\n\r\n{text}".encode("latin-1")
                )
                await writer.drain()
                if keep == "close":
                    return
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
            pass  # the client left, or does not speak HTTP
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[str, str]:
        birth = self._machine.birth
        now = asyncio.get_running_loop().time()
        if not birth.imds_enabled:
            return "403 Forbidden", ""
        if path == "/latest/api/token":
            seconds = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            if method != "PUT":
                return "405 Not Allowed", ""
            if not seconds.isdigit() or not 0 < int(seconds) <= _LONGEST:
                return "400 Bad Request", ""
            token = secrets.token_urlsafe(32)
            self._tokens[token] = now + int(seconds)
            return "200 OK", token
        token = headers.get("x-aws-ec2-metadata-token", "")
        if (token or birth.imds_needs_token) and self._tokens.get(token, 0.0) < now:
            return "401 Unauthorized", ""
        text = self._documents().get(path.removeprefix("/latest/meta-data/").rstrip("/"))
        return ("404 Not Found", "") if text is None else ("200 OK", text)

    def _documents(self) -> dict[str, str]:
        birth, notice = self._machine.birth, self._machine.notice
        documents = {
            "instance-id": birth.id,
            "instance-type": birth.instance_type,
            "instance-life-cycle": birth.market,
            "local-ipv4": birth.address,
            "public-ipv4": birth.address,
            "placement/availability-zone": birth.zone,
            "placement/region": self._machine.settings.region,
        }
        if notice:
            documents["spot/instance-action"] = json.dumps({"action": notice.action, "time": notice.time_text})
            documents["spot/termination-time"] = notice.time_text
        return documents
