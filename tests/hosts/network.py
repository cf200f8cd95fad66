"""Two network namespaces joined by a cable: what runs in one reaches the other through it alone."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

_numbers = itertools.count(os.getpid() % 200)


@dataclass
class Network:
    """`train` and `intel`, each with an address; faults are laid on `intel`'s end of the cable."""

    number: int = field(default_factory=lambda: next(_numbers) % 250)

    @property
    def train(self) -> str:
        return f"tandem-t{os.getpid()}-{self.number}"

    @property
    def intel(self) -> str:
        return f"tandem-i{os.getpid()}-{self.number}"

    @property
    def train_address(self) -> str:
        return f"10.{150 + os.getpid() % 100}.{self.number}.1"

    @property
    def intel_address(self) -> str:
        return f"10.{150 + os.getpid() % 100}.{self.number}.2"

    def start(self) -> None:
        """Make both, with a cable between them."""
        for name in (self.train, self.intel):
            system("ip", "netns", "add", name)
            system("ip", "-n", name, "link", "set", "lo", "up")
        cable = ("type", "veth", "peer", "name", "cable", "netns", self.intel)
        system("ip", "-n", self.train, "link", "add", "cable", *cable)
        for name, address in ((self.train, self.train_address), (self.intel, self.intel_address)):
            system("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            system("ip", "-n", name, "link", "set", "cable", "up")

    def stop(self) -> None:
        """Remove both; the cable goes with them."""
        for name in (self.train, self.intel):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def inside(self, name: str, *, hostname: str) -> list[str]:
        """What to put before a command so that it runs there, under a host name of its own."""
        shell = f'hostname {hostname}; exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", shell, hostname]

    def pull(self) -> None:
        """The cable is out."""
        system("ip", "-n", self.intel, "link", "set", "cable", "down")

    def drop(self, *, share: float = 1.0) -> None:
        """What comes in on the cable is lost, all of it or a share of the packets."""
        lost = [] if share >= 1 else ["-m", "statistic", "--mode", "random", "--probability", str(share)]
        self._rule("-A", [*lost, "-j", "DROP"])

    def slow(self, *, kilobits_per_second: int) -> None:
        """The far end sends no faster."""
        rate = ("tbf", "rate", f"{kilobits_per_second}kbit", "burst", "32kbit", "latency", "400ms")
        system("tc", "-n", self.train, "qdisc", "replace", "dev", "cable", "root", *rate)

    def heal(self) -> None:
        """All is well again."""
        system("ip", "-n", self.intel, "link", "set", "cable", "up")
        system("ip", "netns", "exec", self.intel, "iptables", "-F", "INPUT")
        subprocess.run(
            ["tc", "-n", self.train, "qdisc", "del", "dev", "cable", "root"], check=False, capture_output=True
        )

    def _rule(self, action: str, rest: Sequence[str]) -> None:
        command = ["iptables", action, "INPUT", "-i", "cable", *rest]
        system("ip", "netns", "exec", self.intel, *command)


def system(*command: str) -> None:
    """A command of the system, as root."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
