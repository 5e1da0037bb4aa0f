"""Two hosts on this machine: network namespaces with names of their own, joined by a cable. Needs root on Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HEAD = "10.231.7.1"


@dataclass(frozen=True)
class Host:
    """``name``: of the namespace and of the host; ``address``: on the cable."""

    name: str
    address: str

    @property
    def cable(self) -> str:
        """The name of its network device."""
        return f"{self.name}-c"

    def command(self, words: list[str]) -> list[str]:
        inner = f'hostname {self.name}; exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "-u", "sh", "-c", inner, "sh", *words]

    def start(self, words: list[str], cwd: Path, **env: str) -> subprocess.Popen[str]:
        """A process on this host, with its children in a session of its own."""
        return subprocess.Popen(
            self.command(words),
            cwd=cwd,
            env={**os.environ, "GLOO_SOCKET_IFNAME": self.cable, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """All that run on it, the trainers last."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return sorted(map(int, listed.stdout.split()))

    def set_cable(self, state: str) -> None:
        """``up`` or ``down``."""
        _ip("netns", "exec", self.name, "ip", "link", "set", self.cable, state)


def possible() -> bool:
    """Whether this machine lets us make hosts."""
    if sys.platform != "linux" or os.geteuid():
        return False
    made = subprocess.run(["ip", "netns", "add", "tw-probe"], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", "tw-probe")
    return made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two() -> Iterator[tuple[Host, Host]]:
    hosts = (Host(f"tw{os.getpid()}a", HEAD), Host(f"tw{os.getpid()}b", "10.231.7.2"))
    for host in hosts:
        _ip("netns", "add", host.name)
    try:
        _ip("link", "add", hosts[0].cable, "type", "veth", "peer", "name", hosts[1].cable)
        for host in hosts:
            _ip("link", "set", host.cable, "netns", host.name)
            inside = ("netns", "exec", host.name, "ip")
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", host.cable)
            _ip(*inside, "link", "set", host.cable, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            for process in host.processes():
                try:
                    os.kill(process, 9)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def torchrun(hosts: tuple[Host, Host], run: Path, port: int, **env: str) -> list[subprocess.Popen[str]]:
    """One trainer of a planned run on each host, as two administrators would start them."""
    started = []
    for rank, host in enumerate(hosts):
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        words += ["--node-rank", str(rank), "--master-addr", HEAD, "--master-port", str(port)]
        words += ["-m", "tunewright", "train", str(run)]
        started.append(host.start(words, run.parent, **env))
    return started
