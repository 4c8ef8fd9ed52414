"""`python -m oet_operator.local.loopback COMMAND...`: switch the loopback of a new network namespace on, then be the command.

The rights that an ordinary user has for it in that namespace the command keeps: a runner gives them back itself.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

__all__ = ["main"]

_SIOCSIFFLAGS = 0x8914
"""From linux/sockios.h."""

_IFF_UP = 0x1
"""From linux/if.h."""

_IFREQ = struct.Struct("16sH14x")
"""struct ifreq of linux/if.h, as far as it is used: a name and flags, in 32 bytes."""


def switch_loopback_on() -> None:
    """Switch the interface `lo` on. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))


def main() -> None:
    """Do it, and become the command. Raises OSError."""
    switch_loopback_on()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
