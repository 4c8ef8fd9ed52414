"""/openapi.json and /ui: the API's document, and a page to read and try it. The page loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import falcon

from oet_api.openapi import JSON, TITLE
from oet_api.wire import dump_json

__all__ = ["DocumentResource", "PageResource", "RedirectResource", "StaticResource"]

_STATIC = Path(__file__).parents[1] / "static"

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".png": "image/png"}

_CACHE_SECONDS = 86400
"""A day: the files change only with a new version of OET, and a changed file has a new ETag."""

_CONTENT_SECURITY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Keeps the page from loading anything that this server does not serve, and others from showing it as a part of theirs."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="{ui}/swagger-ui.css">
<link rel="icon" type="image/png" href="{ui}/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{ui}/swagger-ui-bundle.js"></script>
<script src="{ui}/start.js"></script>
</body>
</html>
"""

_START = """window.ui = SwaggerUIBundle({{
  url: "{base}/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
}});
"""


class DocumentResource:
    """The OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._data = dump_json(document)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the document."""
        resp.content_type = JSON
        resp.data = self._data


class PageResource:
    """The page that shows the API."""

    def __init__(self, base: str) -> None:
        self._page = _PAGE.format(title=TITLE, ui=f"{base}/ui").encode()

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the page."""
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", _CONTENT_SECURITY)
        resp.data = self._page


class StaticResource:
    """The files that the page needs; read once, nothing else can be asked for."""

    def __init__(self, base: str) -> None:
        self._files = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.suffix in _TYPES}
        self._files["start.js"] = _START.format(base=base).encode()
        self._tags = {name: f'"{hashlib.sha256(data).hexdigest()[:16]}"' for name, data in self._files.items()}

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Answer with one file."""
        if name not in self._files:
            raise falcon.HTTPRouteNotFound
        resp.set_header("ETag", self._tags[name])
        resp.cache_control = ["public", f"max-age={_CACHE_SECONDS}"]
        if self._tags[name] in (req.get_header("If-None-Match") or ""):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = _TYPES[Path(name).suffix]
        resp.data = self._files[name]


class RedirectResource:
    """The root: sends a browser to the page."""

    def __init__(self, target: str) -> None:
        self._target = target

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the way to the page."""
        raise falcon.HTTPTemporaryRedirect(self._target)
