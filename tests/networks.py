"""Nodes of a cluster on one machine: network namespaces joined by a cable."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOSTS = Path("/etc/netns")
"""Files below /etc/netns/NAMESPACE stand for those in /etc inside the namespace."""


@dataclass(frozen=True)
class Node:
    """A host of its own, as far as the network goes."""

    name: str
    """Its host name, which the other nodes know too."""
    namespace: str

    def command(self, *words: str) -> list[str]:
        """A command as it is given on this node."""
        inside = ["unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.namespace, *inside, *words]

    def received(self) -> int:
        """Bytes that have come over the cable."""
        (link,) = json.loads(ip("-n", self.namespace, "-json", "-s", "link", "show", "eth0"))
        return int(link["stats64"]["rx"]["bytes"])


def ip(*words: str) -> str:
    """Run iproute2's `ip`; returns what it prints."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes, node0 and node1, with a cable between them and no other network.

    Skips the test, with the reason, where that is not allowed. What is made is taken away again,
    however the test ends.
    """
    if not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("needs `ip` (iproute2) and `unshare` (util-linux)")
    nodes = [Node(f"node{n}", f"longrange-{os.getpid()}-{n}") for n in range(2)]
    table = "127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n"
    with ExitStack() as stack:
        try:
            for node in nodes:
                ip("netns", "add", node.namespace)
                stack.callback(ip, "netns", "delete", node.namespace)
                stack.callback(shutil.rmtree, HOSTS / node.namespace, ignore_errors=True)
                (HOSTS / node.namespace).mkdir(parents=True)
                (HOSTS / node.namespace / "hosts").write_text(table)
            # A cable goes with either of the namespaces that it joins.
            ends = [("eth0", "netns", node.namespace) for node in nodes]
            ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            for number, node in enumerate(nodes, start=1):
                at = ("-n", node.namespace)
                ip(*at, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
                ip(*at, "link", "set", "eth0", "up")
                ip(*at, "link", "set", "lo", "up")
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"network namespaces are not allowed here: {said.strip()}")
        yield nodes[0], nodes[1]
