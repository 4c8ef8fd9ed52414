"""Ask OET whether it is ready, and have it run a script: what `helm test` does. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any

SERVER = os.environ["OET_SERVER"]
BASE = SERVER + os.environ["OET_BASE"]
PATIENCE_SECONDS = 180.0
"""A node that has never run a script pulls the image first."""

CONTACT_SECONDS = 30.0
"""With some network plug-ins the policies that let this Pod reach the server are in force a moment after it has begun."""

SOURCE = 'def main(name):\n    print(f"hello {name}")\n'
FINAL = ("COMPLETE", "STOPPED", "FAILED", "UNKNOWN")


def ask(method: str, url: str, body: Any = None) -> Any:
    """Send a request and return the JSON answer; an error says what the server said."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{method} {url}: {error}")


def wait_for_contact() -> None:
    """Wait until the server is reached, whatever it answers."""
    deadline = time.monotonic() + CONTACT_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{SERVER}/healthz", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{SERVER} is not reached: {error}")
        time.sleep(0.5)


def wait_for(url: str, *states: str) -> Any:
    """Poll a procedure until it is in one of the states."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        seen = ask("GET", url)
        if seen["state"] in states:
            return seen
        if time.monotonic() > deadline:
            sys.exit(f"after {PATIENCE_SECONDS:g} s the script is {seen['state']}, not {' or '.join(states)}")
        time.sleep(0.2)


def main() -> None:
    """Create, start and remember one procedure."""
    # No proxy is the way to a Service of the same namespace.
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
    wait_for_contact()
    ask("GET", f"{SERVER}/readyz")
    made = ask("POST", f"{BASE}/procedures/", {"script": {"script_type": "inline", "source": SOURCE}})
    url = f"{BASE}/procedures/{made['id']}"
    seen = wait_for(url, "READY", *FINAL)
    if seen["state"] == "READY":
        ask("PUT", url, {"state": "RUNNING", "script_args": {"main": {"kwargs": {"name": "telescope"}}}})
        seen = wait_for(url, *FINAL)
    if seen["state"] != "COMPLETE":
        sys.exit(f"the script ended {seen['state']}: {json.dumps(seen, indent=1)}")
    print(f"procedure {made['id']} ran and is COMPLETE")


main()
