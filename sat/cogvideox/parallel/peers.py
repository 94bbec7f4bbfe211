"""Which of the other processes live, as connections of their own show.

Processes wait for each other in collectives, and one may rightly wait for hours while another samples one more video.
So waiting says nothing. Here every process keeps a connection to rank 0 in a thread: it breaks at once when a process
ends, and a process that sends no sign of life for `timeout_s` is stopped, or its machine is. Requests to stop travel
the same way, so that a signal to one process is known to all within moments.

Lines that are sent: `beat`; `stop <signal> <reason>`; `left <how>` before a connection is closed in order; and from
rank 0 `lost <text>`.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from cogvideox import stopping
from cogvideox.errors import EXIT_USER_ERROR, ConfigError
from cogvideox.log import get_logger
from cogvideox.parallel.launch import Launch

_log = get_logger(__name__)
_KEY = "cogvideox/peers"
_MAX_BEAT_S = 5.0
# From the news that a process is gone until this one is ended from outside: its main thread may be able to leave in
# order (a collective fails by itself over gloo), or hang for good (over NCCL).
_GRACE_S = 10.0
_FINISHED = "finished"
_SIGNAL_NAMES = {each.name for each in stopping.SIGNALS}


@dataclass(eq=False)
class _Peer:
    """The other end of a connection."""

    connection: socket.socket
    rank: int
    name: str
    heard: float = field(default_factory=time.monotonic)
    rest: bytes = b""
    has_left: bool = False


class Peers:
    """This process's connections: rank 0 has one to each other process, the others have one to rank 0.

    `lost` says which process is gone, once one is.
    """

    def __init__(self, launch: Launch, peers: list[_Peer], timeout_s: float) -> None:
        self.lost: str | None = None
        # One line is enough, but on each machine somebody has to say it, and somebody when rank 0 is gone.
        self.speaks = launch.rank == 0 or launch.local_rank == 0
        self._launch, self._peers, self._timeout_s = launch, peers, timeout_s
        self._beat_s = min(_MAX_BEAT_S, timeout_s / 4)
        self._known, self._leaving = threading.Event(), threading.Event()
        self._sending = threading.Lock()
        self._known_at = 0.0
        for peer in peers:
            peer.connection.settimeout(self._beat_s)
        stopping.on_request(lambda signum, why: self._send(f"stop {signum} {why}"))
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()

    def wait_for_loss(self, seconds: float) -> str | None:
        """Which process is gone, if that becomes known within this time."""
        self._known.wait(seconds)
        return self.lost

    def leave(self, error: str = "") -> None:
        """Close the connections in order, so that the others don't take this process for a dead one. error: what made
        it end early, in a line."""
        if self._leaving.is_set():
            return
        stopping.on_request(None)
        self._send(f"left {error or _FINISHED}")
        self._leaving.set()
        self._thread.join()
        for peer in self._peers:
            peer.connection.close()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        for peer in self._peers:
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        beat_at = 0.0
        while not self._leaving.is_set():
            for key, _ in selector.select(timeout=0.25):
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + self._beat_s
                self._send("beat")
                self._find_silent(now)
            if self.lost is not None and now - self._known_at > _GRACE_S:
                self._end()
        selector.close()

    def _receive(self, peer: _Peer) -> bool:
        """Take what has arrived; whether more may come."""
        try:
            data = peer.connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            if not peer.has_left:
                self._lose_peer(
                    peer,
                    "has ended without a word; its own output, or the kernel's log (out of memory?), says why",
                )
            return False
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            self._take(peer, word, rest)
        return True

    def _take(self, peer: _Peer, word: str, rest: str) -> None:
        if word == "stop":
            number, _, why = rest.partition(" ")
            stopping.request(int(number), f"{why} of rank {peer.rank}" if why in _SIGNAL_NAMES else why)
        elif word == "lost":
            self._lose(rest)
        elif word == "left":
            peer.has_left = True
            if rest != _FINISHED:
                self._lose_peer(peer, f"has ended: {rest}")

    def _find_silent(self, now: float) -> None:
        for peer in self._peers:
            if not peer.has_left and now - peer.heard > self._timeout_s:
                self._lose_peer(
                    peer,
                    f"has shown no sign of life for {self._timeout_s:g} s (args.collective_timeout_s): it, or its "
                    "machine, was stopped",
                )

    def _lose_peer(self, peer: _Peer, what: str) -> None:
        self.speaks = self.speaks or self._launch.rank == 1  # whom rank 1 loses is rank 0
        self._lose(f"{peer.name} {what}")

    def _lose(self, text: str) -> None:
        if self.lost is None:
            self._known_at, self.lost = time.monotonic(), text
            if self._launch.rank == 0:
                self._send(f"lost {text}")
            self._known.set()

    def _send(self, line: str) -> None:
        data = line.replace("\n", " ").encode() + b"\n"
        with self._sending:
            for peer in self._peers:
                try:
                    peer.connection.sendall(data)
                except OSError:  # gone; reading will say so
                    continue

    def _end(self) -> None:
        """The main thread did not leave by itself."""
        if stopping.requested():
            stopping.end_at_once()
        if self.speaks:
            stopping.say(f"error: {self.lost}")
        os._exit(EXIT_USER_ERROR)


def connect_peers(launch: Launch, store: dist.Store, rendezvous_s: float, timeout_s: float) -> Peers:
    """Connect all processes; every one of them calls this at the same point.

    Raises: ConfigError when some can't be reached in time.
    """
    name = f"rank {launch.rank} (process {os.getpid()} on {socket.gethostname()})"
    deadline = time.monotonic() + rendezvous_s
    try:
        peers = _accept(launch, store, name, deadline) if launch.rank == 0 else [_call(launch, store, name, deadline)]
    except OSError as error:
        raise ConfigError(
            f"process {launch.rank} of {launch.world_size} could not connect with the others within {rendezvous_s:g} s "
            f"({error}); can the machines reach each other on all ports, as gloo and NCCL need?"
        ) from error
    return Peers(launch, peers, timeout_s)


def _accept(launch: Launch, store: dist.Store, name: str, deadline: float) -> list[_Peer]:
    """Rank 0: a connection from each other process. Whoever doesn't know the secret of this run is sent away."""
    secret = secrets.token_hex(16)
    peers: dict[int, _Peer] = {}
    with _listen() as server:
        store.set(_KEY, f"{server.getsockname()[1]} {secret} {name}")
        while len(peers) < launch.world_size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            connection, _ = server.accept()
            rank, word, other = _introduction(connection)
            if hmac.compare_digest(word.encode(), secret.encode()):
                peers[int(rank)] = _Peer(connection, int(rank), other)
            else:
                connection.close()
    return [peers[rank] for rank in sorted(peers)]


def _introduction(connection: socket.socket) -> tuple[str, str, str]:
    """Rank, secret and name, as a new connection gives them; empty words for another kind of caller."""
    connection.settimeout(5.0)
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 1000 and (byte := connection.recv(1)):
            data += byte
    except OSError:
        return "", "", ""
    words = data.decode("utf-8", "replace").strip().split(" ", 2)
    return (words[0], words[1], words[2]) if len(words) == 3 else ("", "", "")


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _call(launch: Launch, store: dist.Store, name: str, deadline: float) -> _Peer:
    left = max(0.01, deadline - time.monotonic())
    try:
        store.wait([_KEY], timedelta(seconds=left))
    except RuntimeError as error:
        raise TimeoutError("rank 0 has not answered") from error
    port, secret, first = store.get(_KEY).decode().split(" ", 2)
    connection = socket.create_connection((launch.address, int(port)), timeout=left)
    connection.sendall(f"{launch.rank} {secret} {name}\n".encode())
    return _Peer(connection, 0, first)
