"""The page's HTTP server: Gradio's page, the pictures and downloads from memory, limits, and headers."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from fastapi import FastAPI, HTTPException, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.dicom.derive import derive
from client.outputs import provenance
from client.png import save_png
from client.web import display, page
from client.web.sessions import Rate, Session, Sessions
from client.web.site import Site

HERE = Path(__file__).parent
HEADERS = {
    # the page itself loads nothing from elsewhere, and this makes sure that browsers would not
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
UPLOADS = "/gradio_api/upload"


class Guard:
    """Adds ``HEADERS`` to every answer and limits uploads per address."""

    def __init__(self, app: ASGIApp, rate: Rate) -> None:
        self.app, self.rate = app, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        if scope["method"] == "POST" and scope["path"] == UPLOADS:
            seconds = self.rate.wait((scope.get("client") or ("",))[0])
            if seconds:
                text = f"The limit is {self.rate.limit} files per minute: try again in {seconds:.0f} s."
                return await Response(text, 429, media_type="text/plain")(scope, receive, send_with_headers)
        await self.app(scope, receive, send_with_headers)


def make_app(site: Site, at_once: int, max_upload: int) -> FastAPI:
    """Make the server; uploads may have ``max_upload`` bytes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, rate=Rate(site.rate.limit))
    add_images(app, site.sessions)
    return gr.mount_gradio_app(
        app,
        page.build(site, at_once),
        path="/",
        max_file_size=max_upload,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        show_error=False,
        theme=page.THEME,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )


def add_images(app: FastAPI, sessions: Sessions) -> None:
    """Serve the pictures and results of sessions, at addresses that only their owners know."""

    @app.get("/images/{token}/{layer}.png")
    def picture(token: str, layer: str, center: str = "50", width: str = "100") -> Response:
        _, shown = find(sessions, token)
        if layer == "doubt":
            if shown.doubt is None:
                raise HTTPException(404, "This result has no uncertainty.")
            return answer(shown.doubt, "image/png")
        pixels = {"before": shown.before, "after": shown.after}.get(layer)
        if pixels is None:
            raise HTTPException(404, "There is no such picture.")
        return answer(display.through_window(pixels, *window(center, width)), "image/png")

    @app.get("/results/{token}/{kind}")
    def result(token: str, kind: str) -> Response:
        session, _ = find(sessions, token)
        source, upscaled = session.source, session.upscaled
        if source is None or upscaled is None or kind not in ("png", "png16", "dicom"):
            raise HTTPException(404, "There is no such result.")
        file = io.BytesIO()
        if kind == "dicom":
            if session.no_dicom:
                raise HTTPException(404, f"There is no DICOM: {session.no_dicom}.")
            derive(source, upscaled).save_as(file, enforce_file_format=True)
            return answer(file.getvalue(), "application/dicom", f"{session.name}_x4.dcm")
        save_png(file, upscaled.image, 8 if kind == "png" else 16, provenance(source, upscaled))
        return answer(file.getvalue(), "image/png", f"{session.name}_x4.png")


def find(sessions: Sessions, token: str) -> tuple[Session, display.Display]:
    session = sessions.find(token)
    if session is None or session.display is None:
        raise HTTPException(404, "The page no longer has this image.")
    return session, session.display


def window(center: str, width: str) -> tuple[float, float]:
    """Return a window's center and width, given in percent, in [0, 1] of gray."""
    try:
        c, w = float(center), float(width)
    except ValueError:
        raise HTTPException(400, "'center' and 'width' must be numbers, in percent.") from None
    if not (0 <= c <= 100 and 1 <= w <= 100):
        raise HTTPException(400, "'center' must be 0–100 and 'width' 1–100.")
    return c / 100, w / 100


def answer(data: bytes, kind: str, name: str = "") -> Response:
    headers = {"cache-control": "no-store"}
    if name:
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(name)}"
    return Response(data, media_type=kind, headers=headers)
