"""A real browser: no page from elsewhere makes or starts anything here, nor reads it; OET's own page works.

What is attempted is what a browser sends without asking first, and what it does when a name changes its address.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from oet_support import BASE, Client, Server, find_free_port, running_server
from oet_support_browser import Browser, Page, find_browser, running_browser

pytestmark = [
    # Where the tests are to be complete, a browser that is missing is an error.
    pytest.mark.skipif(find_browser() is None and not os.environ.get("CI"), reason="there is no chromium"),
]

SOURCE = "def main():\n    pass\n"
CREATE = json.dumps({"script": {"script_type": "inline", "source": SOURCE}})
START = json.dumps({"state": "RUNNING"})

ATTEMPTS = """
const json = %(create)s, start = %(start)s, server = %(server)s, base = server + %(base)s;
const seen = {};
async function attempt(name, url, options) {
  try {
    const answer = await fetch(url, {cache: "no-store", ...options});
    seen[name] = answer.type === "opaque" ? "opaque" : answer.status + " " + (await answer.text()).slice(0, 60);
  } catch (error) { seen[name] = "refused"; }
}
const blob = new Blob([json]);
await attempt("blob", base + "/procedures/", {method: "POST", mode: "no-cors", body: blob});
await attempt("text", base + "/procedures/", {method: "POST", mode: "no-cors", body: json});
await attempt("form", base + "/procedures/", {method: "POST", mode: "no-cors", body: new URLSearchParams({json})});
await attempt("empty", base + "/procedures/", {method: "POST", mode: "no-cors"});
await attempt("cors", base + "/procedures/", {method: "POST", headers: {"Content-Type": "application/json"}, body: json});
const headers = {"Content-Type": "application/json"};
await attempt("put", base + "/procedures/%(number)d", {method: "PUT", headers, body: start});
await attempt("list", base + "/procedures/", {});
await attempt("read", base + "/procedures/", {mode: "no-cors"});
await attempt("metrics", server + "/metrics", {});
seen.beacon = navigator.sendBeacon(base + "/procedures/", blob);
return seen;
"""
"""Each way by which a page can send something; `%(server)s` is where to."""

FORM = """
const form = document.createElement("form");
Object.assign(form, {method: "post", enctype: "text/plain", action: %(url)s, target: "answer"});
const field = document.createElement("input");
[field.name, field.value] = [%(create)s.slice(0, -1) + ', "reason": "', '"}'];
const frame = document.createElement("iframe");
frame.name = "answer";
document.body.append(frame, form);
form.append(field);
await new Promise(done => { frame.onload = done; form.submit(); });
"""
"""A form whose text is JSON, the oldest trick."""


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!doctype html><title>elsewhere</title><body>harmless</body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving_pages(host: str, port: int) -> Iterator[None]:
    """Serve a page of somebody else."""
    server = ThreadingHTTPServer((host, port), _Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def number(server: Server) -> int:
    """A procedure that is READY, for a page to start."""
    with contextlib.closing(Client(server.port)) as client:
        return client.prepare(SOURCE, None)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of somebody else's server on this machine: the nearest that a strange page can be."""
    port = find_free_port()
    with serving_pages("127.0.0.1", port):
        yield port


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    # Every name is this machine: the names of pages, and that of the server's address.
    with running_browser(
        tmp_path_factory.mktemp("browser"), "--host-resolver-rules=MAP *.example 127.0.0.1"
    ) as browser:
        yield browser


@pytest.fixture
def unchanged(server: Server, number: int) -> Iterator[None]:
    """See after a test that its page made and started nothing."""
    with contextlib.closing(Client(server.port)) as client:
        before = [one["id"] for one in client.ask("GET", "/procedures/")]
        yield
        after = {one["id"]: one["state"] for one in client.ask("GET", "/procedures/")}
    assert after[number] == "READY"
    assert list(after) == before


@contextlib.contextmanager
def _opened(browser: Browser, url: str) -> Iterator[Page]:
    with contextlib.closing(browser.open(url)) as page:
        page.wait_for(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")
        yield page


def _fill(text: str, server: str, number: int = 1) -> str:
    url = f"{server}{BASE}/procedures/"
    words = {"create": CREATE, "start": START, "server": server, "base": BASE, "url": url}
    return text % {**{name: json.dumps(word) for name, word in words.items()}, "number": number}


@pytest.mark.parametrize("page_host", ["127.0.0.1", "localhost", "page.example"])
@pytest.mark.usefixtures("unchanged")
def test_page_from_elsewhere_makes_and_reads_nothing(
    browser: Browser, server: Server, elsewhere: int, number: int, page_host: str
) -> None:
    with _opened(browser, f"http://{page_host}:{elsewhere}/") as page:
        for server_host in ("127.0.0.1", "localhost"):
            seen = page.run(_fill(ATTEMPTS, f"http://{server_host}:{server.port}", number))
            # What a page can read of an answer is its type alone, or nothing.
            assert set(seen.values()) <= {"opaque", "refused", True}, seen
            assert {seen["cors"], seen["put"], seen["list"], seen["read"], seen["metrics"]} == {"refused"}


@pytest.mark.usefixtures("unchanged")
def test_form_from_elsewhere_makes_nothing(browser: Browser, server: Server, elsewhere: int) -> None:
    with _opened(browser, f"http://page.example:{elsewhere}/") as page:
        page.run(_fill(FORM, f"http://127.0.0.1:{server.port}"))


def test_page_from_elsewhere_cannot_show_oets_page_as_a_part_of_its_own(
    browser: Browser, server: Server, elsewhere: int
) -> None:
    with _opened(browser, f"http://page.example:{elsewhere}/") as page:
        url = json.dumps(f"http://127.0.0.1:{server.port}{BASE}/ui")
        page.run(
            f"const frame = document.createElement('iframe'); frame.src = {url}; document.body.append(frame);"
            "await new Promise(done => { frame.onload = done; });"
        )
        assert page.read_frame().startswith("chrome-error://chromewebdata/ ")


class _Relay:
    """A place that is somebody else's server first, and OET's later: as a name is whose address was changed."""

    def __init__(self) -> None:
        self.target = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._join, args=[self._listener.accept()[0]], daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.recv(1, socket.MSG_PEEK)  # A browser opens connections before it needs them.
            far = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._copy, args=[far, client], daemon=True).start()
            self._copy(client, far)

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.usefixtures("unchanged")
def test_name_that_changes_its_address_makes_and_reads_nothing(
    browser: Browser, server: Server, elsewhere: int, number: int
) -> None:
    with contextlib.closing(_Relay()) as relay:
        relay.target = elsewhere
        own = f"http://rebound.example:{relay.port}"
        with _opened(browser, f"{own}/") as page:
            relay.target = server.port
            seen = page.run(_fill(ATTEMPTS, own, number))
    # For the browser it is the page's own server: it sends and reads all. So the server must know that this is not its name.
    answers = {name: answer for name, answer in seen.items() if name != "beacon"}
    assert {answer[:3] for answer in answers.values()} == {"421"}, seen
    assert all("does not answer to the name" in answer for answer in answers.values()), seen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_oets_own_page_loads_and_executes(browser: Browser, server: Server, host: str) -> None:
    with _opened(browser, f"http://{host}:{server.port}{BASE}/ui") as page:
        post = "document.querySelector('#operations-default-create_procedure')"
        page.wait_for(post)
        page.run(f"{post}.querySelector('.opblock-summary-control').click()")
        page.wait_for(f"{post}.querySelector('.try-out__btn')")
        page.run(f"{post}.querySelector('.try-out__btn').click()")
        page.wait_for(f"{post}.querySelector('textarea')")
        page.run(
            f"const field = {post}.querySelector('textarea');"
            "const set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set;"
            f"set.call(field, {json.dumps(CREATE)});"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
        )
        page.run(f"{post}.querySelector('.execute').click()")
        page.wait_for(f"{post}.querySelector('.live-responses-table .response')")
        shown = page.run(f"return {post}.querySelector('.live-responses-table .response').innerText")
        assert shown.startswith("201"), shown
