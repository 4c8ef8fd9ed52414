"""The cluster's addresses, and the link between its network namespace and the machine's.

Inside are a bridge for the Pods and one end of a pair of virtual Ethernet devices; the other end is on the machine.
There is no way from a Pod to anything but this machine.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Sequence

from oet_cluster.errors import ClusterError
from oet_cluster.processes import INIT, Namespaces

__all__ = [
    "API_SERVICE_ADDRESS",
    "API_URL",
    "BRIDGE",
    "DNS_ADDRESS",
    "DOMAIN",
    "HOST_ADDRESS",
    "NODE_ADDRESS",
    "NODE_NAME",
    "PODS",
    "SERVICES",
    "check_routes",
    "connect",
    "disconnect",
    "find_conflicts",
]

NODE_NAME = "oet-node"
DOMAIN = "cluster.local"

LINK = "10.250.0.0/30"
HOST_ADDRESS = "10.250.0.1"
"""The machine, as Pods and the node see it."""
NODE_ADDRESS = "10.250.0.2"
"""The node, as the machine and Pods see it."""
PODS = "10.244.0.0/24"
BRIDGE_ADDRESS = "10.244.0.1/24"
SERVICES = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
"""Always the first address of SERVICES."""
DNS_ADDRESS = "10.96.0.10"

API_URL = f"https://{NODE_ADDRESS}:6443"
BRIDGE = "cni0"
HOST_DEVICE = "oet-host"
NODE_DEVICE = "oet-node"


def find_conflicts(routes: Iterable[str]) -> list[str]:
    """Return the machine's routes that lie in the cluster's ranges; a wider route is only overruled, so it may stay.

    Args:
        routes: Destinations as `ip route` shows them, for example `default` or `10.244.0.0/24`.
    """
    ours = [ipaddress.IPv4Network(network) for network in (LINK, PODS, SERVICES)]
    found = []
    for route in routes:
        if route != "default":
            theirs = ipaddress.IPv4Network(route, strict=False)
            found += [route for network in ours if theirs.subnet_of(network)]
    return found


def check_routes() -> None:
    """Make sure that the machine does not use the cluster's addresses.

    Raises:
        ClusterError: It does.
    """
    routes = json.loads(_ip(["-json", "-4", "route", "show"]) or "[]")
    conflicts = find_conflicts(str(route["dst"]) for route in routes)
    if conflicts:
        raise ClusterError(
            f"this machine already has routes to {', '.join(conflicts)}, which the cluster needs ({LINK}, {PODS}, "
            f"{SERVICES}). Another cluster runs here? Take it down, with the OET_CLUSTER_DIR it was started with. "
            f"If none does, remove what one left: ip link delete {HOST_DEVICE}"
        )


def connect(namespaces: Namespaces) -> None:
    """Make link, bridge and routes. Raises ClusterError if a command fails."""
    init = str(namespaces.find(INIT))
    _ip(["link", "add", HOST_DEVICE, "type", "veth", "peer", "name", NODE_DEVICE, "netns", init])
    _ip(["address", "add", f"{HOST_ADDRESS}/30", "dev", HOST_DEVICE])
    _ip(["link", "set", HOST_DEVICE, "up"])
    for command in (
        ["link", "set", "lo", "up"],
        ["address", "add", f"{NODE_ADDRESS}/30", "dev", NODE_DEVICE],
        ["link", "set", NODE_DEVICE, "up"],
        ["link", "add", BRIDGE, "type", "bridge"],
        ["address", "add", BRIDGE_ADDRESS, "dev", BRIDGE],
        ["link", "set", BRIDGE, "up"],
        # A Service's address needs some route before kube-proxy can rewrite it; this one ends at the machine.
        ["route", "add", "default", "dev", NODE_DEVICE],
    ):
        namespaces.run(["ip", *command])
    settings = (
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.route_localnet=1",
        # Pods of one node reach each other over the bridge: without this no rule would see it.
        "net.bridge.bridge-nf-call-iptables=1",
    )
    namespaces.run(["sysctl", "-qw", *settings])
    # So tests on the machine reach Pods and Services by address.
    for network in (PODS, SERVICES):
        _ip(["route", "add", network, "via", NODE_ADDRESS, "dev", HOST_DEVICE])


def disconnect() -> None:
    """Remove our end of the link if it outlived the namespaces; its routes go with it."""
    subprocess.run(["ip", "link", "delete", HOST_DEVICE], capture_output=True, check=False)


def _ip(arguments: Sequence[str]) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout
