"""Network namespaces joined by cables: what runs in one reaches another through its cable alone."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_numbers = itertools.count(os.getpid() % 200)


@dataclass
class Network:
    """`train` and `intel`, each with an address, and a cable between them that faults are laid on."""

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
        return inside(name, hostname=hostname)

    def pull(self) -> None:
        """The cable is out."""
        system("ip", "-n", self.intel, "link", "set", "cable", "down")

    def drop(self, *, share: float = 1.0) -> None:
        """What is sent is lost, either way, all of it or a share of the packets.

        It is dropped where it arrives: a rule against sending would be told to the sender.
        """
        lost = [] if share >= 1 else ["-m", "statistic", "--mode", "random", "--probability", str(share)]
        self._at_both_ends("-A", "INPUT", "-i", "cable", *lost, "-j", "DROP")

    def slow(self, *, kilobits_per_second: int) -> None:
        """The far end sends no faster."""
        rate = ("tbf", "rate", f"{kilobits_per_second}kbit", "burst", "32kbit", "latency", "400ms")
        system("tc", "-n", self.train, "qdisc", "replace", "dev", "cable", "root", *rate)

    def heal(self) -> None:
        """All is well again."""
        system("ip", "-n", self.intel, "link", "set", "cable", "up")
        self._at_both_ends("-F", "INPUT")
        subprocess.run(
            ["tc", "-n", self.train, "qdisc", "del", "dev", "cable", "root"], check=False, capture_output=True
        )

    def _at_both_ends(self, *rule: str) -> None:
        for name in (self.train, self.intel):
            system("ip", "netns", "exec", name, "iptables", *rule)


@dataclass
class Star:
    """A host in the middle and others around it, each on a cable of its own. All find each other by name."""

    middle: str
    leaves: tuple[str, ...]
    address: str = "10.149.0.1"  # of the middle, the same for all

    def namespace(self, host: str) -> str:
        """Of that host."""
        return f"tandem-{host}-{os.getpid()}"

    def start(self) -> None:
        """Make all of them, their cables and what stands in their /etc/hosts."""
        names = {self.middle: self.address, **{leaf: self._far(leaf) for leaf in self.leaves}}
        for host in names:
            space = self.namespace(host)
            system("ip", "netns", "add", space)
            system("ip", "-n", space, "link", "set", "lo", "up")
            hosts = self._etc(host) / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{at} {one}\n" for one, at in names.items()))
        system("ip", "-n", self.namespace(self.middle), "addr", "add", f"{self.address}/32", "dev", "lo")
        for leaf in self.leaves:
            self._lay_cable(leaf)

    def stop(self) -> None:
        """Remove all of them."""
        for host in (self.middle, *self.leaves):
            name = self.namespace(host)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            shutil.rmtree(self._etc(host), ignore_errors=True)

    def drop(self, leaf: str) -> None:
        """That host is gone without a word: what comes in and what goes out is lost."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = ("iptables", "-A", chain, way, "cable", "-j", "DROP")
            system("ip", "netns", "exec", self.namespace(leaf), *rule)

    def heal(self, leaf: str) -> None:
        """It is back."""
        system("ip", "netns", "exec", self.namespace(leaf), "iptables", "-F")

    def _lay_cable(self, leaf: str) -> None:
        space, middle, near = self.namespace(leaf), self.namespace(self.middle), self._near(leaf)
        end = f"to-{leaf}"[:15]
        peer = ("type", "veth", "peer", "name", "cable", "netns", space)
        system("ip", "-n", middle, "link", "add", end, *peer)
        for name, address, device in ((middle, near, end), (space, self._far(leaf), "cable")):
            system("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            system("ip", "-n", name, "link", "set", device, "up")
        system("ip", "-n", space, "route", "add", self.address, "via", near)

    def _near(self, leaf: str) -> str:
        return f"10.149.{self.leaves.index(leaf) + 1}.1"

    def _far(self, leaf: str) -> str:
        return f"10.149.{self.leaves.index(leaf) + 1}.2"

    def _etc(self, host: str) -> Path:
        """`ip netns exec` lays what is in there over /etc."""
        return Path("/etc/netns") / self.namespace(host)


def inside(name: str, *, hostname: str) -> list[str]:
    """What to put before a command so that it runs in a namespace, under a host name."""
    shell = f'hostname {hostname}; exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", shell, hostname]


def system(*command: str) -> None:
    """A command of the system, as root."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
