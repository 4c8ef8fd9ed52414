"""Run OET and the services that it needs on this machine, in the background; or in a cluster, if there is one.

`up`: into the cluster of the current context as tools/chart.py does; without one, or with LOCAL=1, on this machine: a simulated
Tango system and the REST server. `down` ends what `up` and `interactive` started here; if that is nothing, it takes OET out of
the cluster.
`interactive` opens a shell beside a simulated Tango system, which ends with the shell.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import chart
import images
from images import ImageError, Tool

from oet_crds.names import API_MAJOR, DEFAULT_NAMESPACE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "local"
"""Of logs, and of a record for each process that runs in the background."""

START_SECONDS = 40.0
"""The server needs a second, the simulated system half of one; an overloaded machine twenty times that."""

STOP_SECONDS = 30.0
"""The server ends within 25 s whatever its scripts do."""

HINT = r"""
TANGO_HOST is $TANGO_HOST. Everything ends with this shell. For example:
  python -c 'from oet.tango.observing import *; allocate(1); print(get_obs_state(1).name)'
  export OET_READ_VIA_PUBSUB=1   (waits use events from then on instead of polling)
With "make rest" in another shell that has the same TANGO_HOST:
  oet procedure run lib/oet/scripts/observe.py --subarray_id=1
"""
"""What the shell says first; the shell itself puts the variable in."""

CONTAINER_PREFIX = "oet-interactive-"
"""Of the names of containers with a shell. A container outlives its client that was killed, so `down` asks for it by name."""


class LocalError(Exception):
    """It cannot be done; the text says why, and what to do."""


@dataclass(frozen=True)
class Process:
    """A process in the background, told from another with the same id by the time of its start."""

    name: str
    pid: int
    started: str

    @property
    def record(self) -> Path:
        """The file that remembers it."""
        return FOLDER / f"{self.name}.json"

    def is_running(self) -> bool:
        """Tell whether it is still there."""
        return read_start(self.pid) == self.started


def say(line: str) -> None:
    """Tell the user what happens."""
    print(line, flush=True)


def read_start(pid: int) -> str:
    """Return when a process started, in the kernel's clock ticks; empty when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    fields = stat[stat.rindex(")") + 2 :].split()
    return "" if fields[0] == "Z" else fields[19]


def remember(name: str, pid: int) -> Process:
    """Write a process down, so that `down` finds it."""
    process = Process(name, pid, read_start(pid))
    FOLDER.mkdir(parents=True, exist_ok=True)
    process.record.write_text(json.dumps({"pid": process.pid, "started": process.started}), encoding="utf-8")
    return process


def recall() -> list[Process]:
    """Return the processes that are remembered and still run; forget the others."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        process = Process(path.stem, known["pid"], known["started"])
        if process.is_running():
            found.append(process)
        else:
            path.unlink(missing_ok=True)
    return found


def decide_place(environ: Mapping[str, str], context: str) -> tuple[bool, str]:
    """Return whether `up` works on this machine (True) or in a cluster, and why. Pure.

    Args:
        environ: Environment variables; LOCAL decides if it is set.
        context: The current context of kubectl; empty: there is none.
    """
    if environ.get("LOCAL"):
        return True, "LOCAL is set"
    if context:
        return False, f"kubectl's context is {context}; LOCAL=1 would use this machine"
    return True, "kubectl has no current context"


def find_context() -> str:
    """Return the current context of kubectl, empty when there is none."""
    try:
        kubectl = chart.find_program("kubectl")
    except chart.ChartError:
        return ""
    done = subprocess.run([kubectl, "config", "current-context"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def run_chart(words: Sequence[str]) -> int:
    """Hand the work to the tool for clusters. Returns its exit code."""
    return subprocess.run([sys.executable, ROOT / "tools" / "chart.py", *words], check=False).returncode


# ---- up and down -------------------------------------------------------------------------------------------------------


def up(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Start OET where it belongs. Returns the exit code. Raises LocalError."""
    is_local, why = decide_place(environ, find_context())
    say(f"up: {'on this machine' if is_local else 'in the cluster'}, because {why}")
    if not is_local:
        telescope = ["--set", "simulation.enabled=true"] if environ.get("TANGO") else []
        return run_chart(["up", *telescope, *arguments])
    running = {process.name for process in recall()}
    tango_host = environ.get("TANGO_HOST") or start_telescope(running, environ)
    port = environ.get("OET_PORT") or "5000"
    url = f"http://127.0.0.1:{port}/{environ.get('KUBE_NAMESPACE') or DEFAULT_NAMESPACE}/oet/api/v{API_MAJOR}"
    if "server" not in running:
        if is_ready(port):
            raise LocalError(f"something else answers on port {port} already: end it, or choose another by OET_PORT")
        try:
            start_server({**environ, "TANGO_HOST": tango_host, "OET_PORT": port})
        except LocalError:
            end_all_but(running)  # Who was refused has nothing to tidy up.
            raise
    say(f"OET listens on {url} (its pages: {url}/ui)")
    say(f"scripts use the telescope at TANGO_HOST={tango_host}; logs are in {FOLDER.relative_to(ROOT)}")
    say(f"try: oet --server-url={url} procedure run lib/oet/scripts/observe.py --subarray_id=1")
    return 0


def end_all_but(names: set[str]) -> None:
    """End what this call started: all but what ran before. Raises LocalError."""
    for process in recall():
        if process.name not in names:
            end(process)
            say(f"ended {process.name} (process {process.pid})")


def start_telescope(running: set[str], environ: Mapping[str, str]) -> str:
    """Start the simulated Tango system unless it runs. Returns its TANGO_HOST. Raises LocalError."""
    state = FOLDER / "telescope.state"
    if "telescope" not in running:
        state.unlink(missing_ok=True)
        command = [sys.executable, "-m", "oet.simulation", f"--state-file={state}"]
        start_in_background("telescope", command, environ, state.exists)
    return str(json.loads(state.read_text(encoding="utf-8"))["tango_host"])


def start_server(environ: Mapping[str, str]) -> None:
    """Start the REST server. Raises LocalError."""
    own = {**environ, "OET_HOST": environ.get("OET_HOST") or "127.0.0.1"}
    start_in_background("server", [sys.executable, "-m", "oet_api"], own, lambda: is_ready(own["OET_PORT"]))


def start_in_background(
    name: str, command: Sequence[str], environ: Mapping[str, str], is_up: Callable[[], bool]
) -> None:
    """Start a process that outlives this one, and wait until it works. Raises LocalError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    known = remember(name, process.pid)
    deadline = time.monotonic() + START_SECONDS
    while not is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            end(known)
            raise LocalError(f"{name} did not start; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
    say(f"started {name} (process {process.pid})")


def is_ready(port: str) -> bool:
    """Ask whether an OET server takes work at a port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: Process) -> None:
    """End a process that was started here, and no other that has its id by now. Raises LocalError if it does not end."""
    deadline = time.monotonic() + STOP_SECONDS
    if process.is_running():
        os.kill(process.pid, signal.SIGTERM)
    while process.is_running():
        if time.monotonic() > deadline:
            raise LocalError(
                f"{process.name} (process {process.pid}) goes on after {STOP_SECONDS:g} s: look at its log"
            )
        reap(process.pid)
        time.sleep(0.05)
    process.record.unlink(missing_ok=True)


def reap(pid: int) -> None:
    """Take note of the end of a child, should it be one: otherwise it stays as a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def down(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """End what was started. Returns the exit code. Raises LocalError."""
    remove_containers(environ)
    running = recall()
    # The server first: its scripts may still want the telescope while they end.
    for process in sorted(running, key=lambda one: one.name != "server"):
        end(process)
        say(f"ended {process.name} (process {process.pid})")
    is_local, why = decide_place(environ, find_context())
    if is_local or running:
        # A cluster that somebody else works with must not lose its OET because a shell was left open here.
        say("nothing runs on this machine" if not running else "nothing else was touched: clusters are as they were")
        return 0
    say(f"down: in the cluster, because nothing runs on this machine and {why}")
    return run_chart(["down", *arguments])


def remove_containers(environ: Mapping[str, str]) -> None:
    """Remove the containers with a shell that were started here. Raises ImageError."""
    for path in FOLDER.glob(f"{CONTAINER_PREFIX}*.json"):
        tool = images.choose_tool(environ.get("OET_CONTAINER_TOOL", ""))
        if images.ask(tool, "rm", "--force", path.stem) is not None:
            say(f"removed container {path.stem}")


# ---- a shell beside a telescope ------------------------------------------------------------------------------------------


def interactive(environ: Mapping[str, str]) -> NoReturn:
    """Become a shell beside a simulated Tango system: nothing of this process is left to die alone. Raises ImageError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = FOLDER / "bashrc"
    start.write_text(build_start(environ), encoding="utf-8")
    name = f"interactive-{os.getpid()}"
    if environ.get("CONTAINER"):
        name = f"{CONTAINER_PREFIX}{os.getpid()}"
        command = build_container_command(environ, start, name)
    else:
        command = [sys.executable, "-m", "oet.simulation", "--", *build_shell(start)]
    remember(name, os.getpid())
    path = {"PATH": f"{ROOT / '.venv/bin'}:{environ.get('PATH', os.defpath)}"}
    os.chdir(ROOT)
    os.execvpe(command[0], command, {**environ, **path})


def build_start(environ: Mapping[str, str]) -> str:
    """Return what the shell reads first: the user's own settings, a prompt that says where one is, and what can be done. Pure."""
    place = "oet-image" if environ.get("CONTAINER") else "oet"
    # After the user's own settings, which may put another Python first.
    path = "" if environ.get("CONTAINER") else f"export PATH={shlex.quote(str(ROOT / '.venv/bin'))}:$PATH"
    lines = ["[ -r ~/.bashrc ] && . ~/.bashrc", path, f"PS1='({place}, simulated telescope) \\w\\$ '"]
    return "\n".join([*lines, f"cat <<HINT{HINT}HINT", ""])


def build_shell(start: Path | str) -> list[str]:
    """Return the shell's command: for a person at a terminal, else for commands from standard input."""
    return ["bash", "--rcfile", str(start), "-i"] if sys.stdin.isatty() else ["bash", "-s"]


def build_container_command(environ: Mapping[str, str], start: Path, name: str) -> list[str]:
    """Return the command of a container of the application image with the sources in it. Raises ImageError."""
    tool = images.choose_tool(environ.get("OET_CONTAINER_TOOL", ""))
    if tool is Tool.BUILDAH:
        raise ImageError("buildah builds images, but cannot run them: install podman or docker")
    image = images.require_image(tool, images.observe_source())
    terminal = ["--tty"] if sys.stdin.isatty() else []
    inside = ["python3", "-m", "oet.simulation", "--", *build_shell("/tmp/bashrc")]
    # The sources in place of the image's: what is edited outside runs inside.
    folders = ":".join(f"/app/{name}" for name in ("lib", "runner", "crds"))
    flags = [
        f"--volume={ROOT}:/app",
        f"--volume={start}:/tmp/bashrc:ro",
        "--workdir=/app",
        f"--env=PYTHONPATH={folders}",
        # On the host's network a server that is started in the shell is for this machine alone, as outside.
        "--env=OET_HOST=",
    ]
    network = ["--network=host", *images.observe_limits()] if tool is Tool.PODMAN else []
    return [tool, "run", "--rm", f"--name={name}", "--interactive", *terminal, *network, *flags, image, *inside]


def main() -> int:
    """Do it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "down", "interactive"])
    options, arguments = parser.parse_known_args()
    try:
        if options.verb == "interactive":
            return interactive(os.environ)
        return (up if options.verb == "up" else down)(arguments, os.environ)
    except (LocalError, ImageError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
