"""What happens when users act on the page: upload, upscale, cancel, leave."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from client.api import Client
from client.errors import BadRequest, NotAllowed, UpscaleError
from client.files import smaller
from client.formats.kinds import is_dicom
from client.formats.source import Choice, FileError, FormatError, Source
from client.reader import Reader
from client.results import Event
from client.web import viewer
from client.web.display import make_display
from client.web.sessions import Cancelled, Rate, Session, Sessions, Work
from pipeline.presets import DEFAULT
from pipeline.spec import MIN_SIDE

FAITHFUL = {"preset's": None, "yes": True, "no": False}
CANCELLED = "Cancelled."
PAUSE = 0.2
"""Seconds between updates of the progress."""

Updates = tuple[Any, ...]


@dataclass(frozen=True)
class Site:
    """The page's actions, for all its users."""

    connect: Callable[[], Client]
    """Connects to the Triton server."""
    reader: Reader
    sessions: Sessions
    uploads: Path
    """Folder where Gradio puts uploaded files; they are deleted as soon as they have been read."""
    rate: Rate
    """How many images an address may have upscaled."""
    queue: int
    """Maximum sessions with work in progress or waiting."""

    def receive(self, upload: dict[str, Any] | None, request: gr.Request) -> Updates:
        """Read an uploaded file. Returns: file (emptied), state, viewer, reduction, upscale button."""
        keep = (gr.skip(), gr.skip(), gr.skip())
        if upload is None:
            return None, gr.skip(), *keep
        session = self.sessions.of(request.session_hash)
        path, name = Path(str(upload["path"])).resolve(), Path(str(upload["orig_name"])).name
        if not path.is_relative_to(self.uploads):
            return None, viewer.problem(f"'{name}' was not uploaded"), *keep
        with session.lock:
            busy = session.busy()
            session.reading = not busy
        try:
            if busy:
                raise FileError(f"'{name}' was not read: {busy}")
            session.given, session.no_dicom = self._read(path, name)
            session.name, session.upload = Path(name).stem, path
            session.source, session.upscaled = session.given, None
            self._show(session)
        except FileError as error:
            return None, viewer.problem(str(error)), *keep
        finally:
            session.reading = False
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another upload of the same file is there
                path.parent.rmdir()
        factor = math.ceil(max(session.source.image.shape) / DEFAULT.max_side)
        told = viewer.description(session)
        return None, told, viewer.viewer(session), gr.update(value=factor), gr.update(interactive=True)

    def _read(self, path: Path, name: str) -> tuple[Source, str]:
        """Read an upload; return it and why there will be no DICOM of its result ("" if there will be).

        Its path is made from its content, so that another session may have read and deleted it.
        """
        no_dicom = "the image is not DICOM"
        try:
            if is_dicom(path):
                try:
                    return self._checked(self.reader.read(path, Choice(original=True)), name), ""
                except FileError as error:  # which does not keep it from being read as a picture
                    no_dicom = str(error).replace(str(path), name).partition(": give --")[0]
            return self._checked(self.reader.read(path), name), no_dicom
        except FileError as error:
            twin = self.sessions.with_upload(path)
            if twin is not None and twin.given is not None:
                return twin.given, twin.no_dicom
            raise FileError(str(error).replace(str(path), name)) from None

    @staticmethod
    def _checked(source: Source, name: str) -> Source:
        height, width = source.image.shape
        if min(height, width) < MIN_SIDE:
            raise FileError(f"'{name}' must have {MIN_SIDE} pixels per side or more, got {width}×{height}")
        return source

    def _show(self, session: Session) -> None:
        """Make the pictures of a session anew, under a new address."""
        assert session.source is not None
        result = session.upscaled
        session.display = make_display(
            session.source.image, *((result.image, result.spread) if result is not None else ())
        )
        session.token = Session().token
        self.sessions.trim()

    def start(self, request: gr.Request) -> Updates:
        """Accept or refuse work. Returns: state, upscale button, cancel button."""
        session = self.sessions.get(request.session_hash)
        address = request.client.host if request.client else ""
        if session is None or session.given is None:
            return viewer.problem("the page no longer has this image: drop it again"), gr.skip(), gr.skip()
        with session.lock:
            if busy := session.busy():
                refusal = busy
            elif self.sessions.working() >= self.queue:
                refusal = (
                    f"{self.queue} images are being upscaled or waiting, which is the limit: try again in a minute"
                )
            elif seconds := self.rate.wait(address):
                refusal = f"the limit is {self.rate.limit} images per minute: try again in {math.ceil(seconds)} s"
            else:
                session.work = Work()
                waiting = viewer.told("Waiting for other images …")
                return waiting, gr.update(interactive=False), gr.update(interactive=True)
        return viewer.problem(refusal), gr.skip(), gr.skip()

    def upscale(
        self, samples: float, steps: float | None, seed: float | None, faithful: str, factor: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Upscale a session's image. Yields: state, viewer, upscale button, cancel button."""
        session = self.sessions.get(request.session_hash)
        work = None if session is None else session.work
        if session is None or work is None or work.started:  # refused, or cancelled while it waited
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        work.started = True
        shown: Any = gr.skip()
        try:
            options = {"samples": whole("samples", samples), "faithful": FAITHFUL[faithful]}
            options |= {"seed": whole("seed", seed or 0), "steps": whole("steps", steps or 0) or None}
            for step, steps_in_all in self._run(session, work, options, int(factor)):
                yield viewer.progress(step, steps_in_all), gr.skip(), gr.skip(), gr.skip()
            state, shown = viewer.description(session), viewer.viewer(session)
        except (UpscaleError, FormatError, Cancelled) as error:
            state = viewer.told(CANCELLED) if work.cancelled.is_set() else viewer.problem(str(error))
        except Exception:
            traceback.print_exc()
            state = viewer.problem("the page failed: its log tells why")
        finally:
            session.work = None
        yield state, shown, gr.update(interactive=True), gr.update(interactive=False)

    def _run(self, session: Session, work: Work, options: dict[str, Any], factor: int) -> Iterator[tuple[int, int]]:
        """Upscale, yield the step and the number of steps from time to time, and put the result into the session."""
        assert session.given is not None
        source = reduced(session.given, factor)
        with self.connect() as client:
            work.use(client)
            side = client.preset.max_side
            if max(source.image.shape) > side:
                height, width = source.image.shape
                raise BadRequest(
                    f"the image must have up to {side} pixels per side, got {width}×{height}: "
                    "change 'Reduce the image first by'"
                )
            told, result = -math.inf, None
            for event in self._events(client, source, options):
                if work.cancelled.is_set():
                    raise Cancelled
                if time.monotonic() >= told + PAUSE:
                    told = time.monotonic()
                    yield event.step, event.steps
                result = event.result
        assert result is not None
        session.source, session.upscaled = source, result
        self._show(session)

    @staticmethod
    def _events(client: Client, source: Source, options: dict[str, Any]) -> Iterator[Event]:
        """Upscale with progress or, by HTTP and through proxies that allow no streams, without."""
        if client.protocol == "grpc":
            try:
                yield from client.stream(source.image, pixel_mm=source.pixel_mm, **options)
                return
            except NotAllowed:
                pass
        yield Event(0, 1)
        yield Event(1, 1, result=client.upscale(source.image, pixel_mm=source.pixel_mm, **options))

    def cancel(self, request: gr.Request) -> Updates:
        """Cancel the session's work, on the server as well. Returns: state, upscale button, cancel button."""
        session = self.sessions.get(request.session_hash)
        if session is None or session.work is None:  # it has just ended
            return gr.skip(), gr.skip(), gr.skip()
        session.work.cancel()
        if session.work.started:  # and tells itself that it has ended
            return gr.skip(), gr.skip(), gr.skip()
        session.work = None
        return viewer.told(CANCELLED), gr.update(interactive=True), gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """Forget the session: its tab was closed."""
        self.sessions.drop(request.session_hash)


def whole(name: str, value: float) -> int:
    """Return a number of a form as an integer.

    Raises:
        BadRequest: it is not one.
    """
    if value != int(value):
        raise BadRequest(f"'{name}' must be a whole number, got {value:g}")
    return int(value)


def reduced(source: Source, factor: int) -> Source:
    """Return the source reduced by a factor, 1 for none.

    Raises:
        FormatError: it is too small.
    """
    if factor == 1:
        return source
    notes = list(source.notes)
    return replace(smaller(source, factor, notes), notes=tuple(notes))
