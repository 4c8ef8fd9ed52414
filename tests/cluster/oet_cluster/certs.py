"""The cluster's certificate authority and one certificate for each component, made with openssl.

They are made anew by each `up` and thrown away by `down`, so a day's validity would do; the margin is for a cluster
that a developer leaves running.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oet_cluster import network
from oet_cluster.errors import ClusterError

__all__ = ["CERTIFICATES", "Certificate", "build_extensions", "build_kubeconfig", "issue_all"]

_VALID_DAYS = "365"
_CURVE = "prime256v1"


@dataclass(frozen=True)
class Certificate:
    """Who a component is, and under which names it is reached."""

    name: str
    """File name without suffix."""
    subject: str
    """openssl's form; O is the Kubernetes group, CN the user."""
    addresses: tuple[str, ...] = ()
    """Names of a server (`IP:...`, `DNS:...`); none for a client."""


_SERVICE = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{network.DOMAIN}")

CERTIFICATES = (
    Certificate(
        "apiserver",
        "/CN=kube-apiserver",
        (
            "IP:127.0.0.1",
            f"IP:{network.NODE_ADDRESS}",
            f"IP:{network.API_SERVICE_ADDRESS}",
            *(f"DNS:{name}" for name in _SERVICE),
        ),
    ),
    Certificate(
        "kubelet-server", f"/CN={network.NODE_NAME}", (f"IP:{network.NODE_ADDRESS}", f"DNS:{network.NODE_NAME}")
    ),
    # Not in system:masters: manifests/system.yaml gives it what the API server needs of the kubelet, and no more.
    Certificate("apiserver-kubelet", "/CN=kube-apiserver-kubelet-client"),
    Certificate("admin", "/O=system:masters/CN=admin"),
    Certificate("kubelet", f"/O=system:nodes/CN=system:node:{network.NODE_NAME}"),
    Certificate("controller-manager", "/CN=system:kube-controller-manager"),
    Certificate("scheduler", "/CN=system:kube-scheduler"),
    Certificate("proxy", "/CN=system:kube-proxy"),
    Certificate("policies", "/CN=kube-router"),
)


def build_extensions(certificate: Certificate) -> str:
    """Return the extension file that makes a certificate a server's or a client's, never both."""
    use = "serverAuth" if certificate.addresses else "clientAuth"
    lines = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={use}"]
    if certificate.addresses:
        lines.append(f"subjectAltName={','.join(certificate.addresses)}")
    return "\n".join(lines) + "\n"


def build_kubeconfig(name: str, pki: Path) -> dict[str, Any]:
    """Return the kubeconfig of a client; it holds key and certificates itself, so it can be copied anywhere."""

    def encode(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode("ascii")

    cluster = {"server": network.API_URL, "certificate-authority-data": encode("ca.crt")}
    user = {"client-certificate-data": encode(f"{name}.crt"), "client-key-data": encode(f"{name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "oet", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "oet", "context": {"cluster": "oet", "user": name}}],
        "current-context": "oet",
    }


def issue_all(pki: Path) -> None:
    """Make the authority, the key that signs ServiceAccount tokens, and all certificates.

    Raises:
        ClusterError: openssl failed.
    """
    pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_key("ca", pki)
    authority = ["-subj", "/CN=oet-test-cluster", "-days", _VALID_DAYS]
    _openssl(["req", "-x509", "-new", "-key", "ca.key", *authority, "-out", "ca.crt"], pki)
    # ServiceAccount tokens are signed with RSA unless told otherwise.
    _openssl(["genrsa", "-out", "sa.key", "2048"], pki)
    _openssl(["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"], pki)
    for serial, certificate in enumerate(CERTIFICATES, start=1):
        _issue(certificate, serial, pki)


def _issue(certificate: Certificate, serial: int, pki: Path) -> None:
    name = certificate.name
    _make_key(name, pki)
    (pki / f"{name}.ext").write_text(build_extensions(certificate), encoding="utf-8")
    _openssl(["req", "-new", "-key", f"{name}.key", "-subj", certificate.subject, "-out", f"{name}.csr"], pki)
    signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", str(serial), "-days", _VALID_DAYS]
    request = ["-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.crt"]
    _openssl(["x509", "-req", *signer, *request], pki)


def _make_key(name: str, pki: Path) -> None:
    _openssl(["ecparam", "-name", _CURVE, "-genkey", "-noout", "-out", f"{name}.key"], pki)


def _openssl(arguments: Sequence[str], pki: Path) -> None:
    result = subprocess.run(["openssl", *arguments], cwd=pki, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"`openssl {' '.join(arguments)}` failed in {pki}: {result.stderr.strip()}")
