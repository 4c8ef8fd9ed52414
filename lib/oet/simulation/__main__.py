"""`python -m oet.simulation [OPTIONS] [-- COMMAND...]`: run a command beside a simulated Tango system, which ends with it.

Without a command it serves until SIGTERM or Ctrl-C. It prints TANGO_HOST=... when all devices answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from oet.simulation.seclusion import Address, SeclusionError, parse_addresses, wait_until_secluded
from oet.simulation.system import LOOPBACK, Simulation, SimulationError

__all__ = ["main"]

WATCH_SECONDS = 1.0
"""How often it looks whether its parts are still there."""


class Ended(Exception):
    """A signal asked this process to end."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m oet.simulation", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on and to publish; no name (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the database; 0: any that is free (%(default)s)")
    parser.add_argument("--subarrays", type=int, default=2, help="number of subarrays (%(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster devices work (%(default)s)")
    parser.add_argument("--state-file", type=Path, help="write a JSON file with pid, tango_host and devices when ready")
    parser.add_argument(
        "--away-from",
        type=_parse_away,
        default=[],
        metavar="TANGO_HOST",
        help="a real telescope: nothing is told or run before it cannot be reached from here",
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="after --, what to run with TANGO_HOST set")
    return parser


def _parse_away(text: str) -> list[Address]:
    try:
        return parse_addresses(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    """Start, run the command or wait, end everything. Returns the exit code."""
    options = build_parser().parse_args()
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _on_end)
    try:
        with Simulation(options.host, options.port, options.subarrays, options.speed) as simulation:
            wait_until_secluded(options.away_from)
            _tell(simulation, options.state_file)
            return _run(options.command, simulation) if options.command else _serve(simulation)
    except (SimulationError, SeclusionError) as error:
        print(f"oet.simulation: {error}", file=sys.stderr)
        return 1
    except (Ended, KeyboardInterrupt):
        return 0
    finally:
        if options.state_file:
            options.state_file.unlink(missing_ok=True)


def _on_end(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def _tell(simulation: Simulation, state_file: Path | None) -> None:
    if state_file:
        state = {"pid": os.getpid(), "tango_host": simulation.tango_host, "devices": simulation.devices}
        unfinished = state_file.with_name(f"{state_file.name}.new")
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(state_file)
    print(f"TANGO_HOST={simulation.tango_host}")
    print(f"devices: {' '.join(simulation.devices)}", flush=True)


def _run(command: list[str], simulation: Simulation) -> int:
    """Run the command to its end. Returns its exit code, for a signal as shells have it."""
    # Ctrl-C is the command's: it decides what that means, and this process ends when the command does.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        process = subprocess.Popen(command, env={**os.environ, **simulation.environment})
    except OSError as error:
        raise SimulationError(f"cannot run {command[0]!r}: {error}") from error
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if process.poll() is None:
            process.terminate()
    return code if code >= 0 else 128 - code


def _serve(simulation: Simulation) -> int:
    """Wait for a signal, or for the end of a part. Returns the exit code."""
    while True:
        for part in simulation.processes:
            try:
                part.wait(WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            raise SimulationError(f"process {part.pid} of the simulated system ended with exit code {part.returncode}")


if __name__ == "__main__":
    sys.exit(main())
