"""Pods on one machine: each has its own network, host name and processes, and all of them share one DNS.

A pod gets what a controller and the kubelet give to it: the variables of its manifest, those that the controller adds,
a new address, its host name in its own hosts file, and SIGTERM before SIGKILL.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

_NETWORK = "10.254.253"

# The launcher is the first process of the pod.
_SET_UP = (
    'hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" /etc/nsswitch.conf; shift 3; exec "$@"',
    "pod",
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None,
    reason="making pods needs root, iproute2 and util-linux",
)


@dataclass(frozen=True)
class Manifest:
    """What a controller tells the kubelet of one pod."""

    hostname: str
    dns_name: str
    command: list[str]
    env: dict[str, str]

    def expanded_command(self):
        """The command with the values of `$(NAME)`, as the kubelet starts it."""
        return [re.sub(r"\$\((\w+)\)", lambda name: self.env[name[1]], word) for word in self.command]


class Cluster:
    """A network with a DNS."""

    def __init__(self, folder):
        self._folder, self._id = folder, f"mt{uuid.uuid4().hex[:6]}"
        self._names, self._pods, self._made = {}, [], []
        self._nsswitch = folder / "nsswitch.conf"
        self._nsswitch.write_text("hosts: files\n")
        self._switch = self._make_namespace("switch")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "addr", "add", f"{_NETWORK}.254/24", "dev", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")

    def start(self, launches, manifest, *, is_known=True):
        """Start a pod, with a new address; the DNS may not know it yet."""
        number = len(self._pods) + 1
        pod = Pod(manifest, f"{_NETWORK}.{number}", self._folder / f"hosts.{number}", self._make_namespace(number))
        self._connect(pod, f"pod{number}")
        self._pods.append(pod)
        self.publish(pod if is_known else None)
        inside = ("ip", "netns", "exec", pod.namespace)
        inside += ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        inside += ("sh", "-ec", *_SET_UP, manifest.hostname, str(pod.hosts), str(self._nsswitch))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        pod.process = launches.start(*manifest.expanded_command(), command=inside, env={"PATH": path, **manifest.env})
        return pod

    def publish(self, pod=None):
        """Put the pod into the DNS, and write all hosts files."""
        if pod is not None:
            self._names[pod.manifest.dns_name] = pod.address
        dns = "".join(f"{address} {name}\n" for name, address in self._names.items())
        for each in self._pods:
            each.hosts.write_text(f"127.0.0.1 localhost\n{each.address} {each.manifest.hostname}\n{dns}")

    def close(self):
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _make_namespace(self, name):
        namespace = f"{self._id}-{name}"
        if subprocess.run(["ip", "netns", "add", namespace], check=False, capture_output=True).returncode != 0:
            pytest.skip("this machine allows no network namespaces")
        self._made.append(namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _connect(self, pod, port):
        peer = ("peer", "name", "eth0", "netns", pod.namespace)
        ip("-n", self._switch, "link", "add", port, "type", "veth", *peer)
        ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        ip("-n", pod.namespace, "addr", "add", f"{pod.address}/24", "dev", "eth0")
        ip("-n", pod.namespace, "link", "set", "eth0", "up")
        ip("-n", pod.namespace, "route", "add", "default", "via", f"{_NETWORK}.254")


@dataclass
class Pod:
    """A pod that runs; its process is the one outside of it."""

    manifest: Manifest
    address: str
    hosts: Path
    namespace: str
    process: subprocess.Popen | None = None

    def terminate(self):
        """Send SIGTERM to the first process of the pod."""
        [first] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)

    def vanish(self):
        """End it without a word, as a machine does that fails."""
        ip("-n", self.namespace, "link", "set", "eth0", "down")
        self.process.kill()


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
