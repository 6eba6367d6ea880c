"""HTML of the page's parts that change: the state of the work, the viewer, the downloads."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

import numpy as np

from client.outputs import notes_of
from client.pictures import CAUTION, heat
from client.web.sessions import Session
from pipeline.spec import SCALE

HERE = Path(__file__).parent
VIEWER = Template((HERE / "viewer.html").read_text(encoding="utf-8"))
CAUTION_HTML = (
    f'<p class="caution" role="note"><strong>{CAUTION.capitalize()}.</strong> <span>An upscaled image looks like a '
    "chest X-ray, and it can be wrong: ribs, vessels, devices and text may be invented, altered or missing.</span></p>"
)
COLOURS = ", ".join(f"rgb({r} {g} {b})" for r, g, b in heat(np.linspace(0, 1, 9, dtype=np.float32)[None])[0])
TICKS = 5


def told(text: str) -> str:
    """Return a state of the page in words."""
    return f'<p class="state" role="status">{escape(text)}</p>'


def problem(text: str) -> str:
    """Return an error in words."""
    return f'<p class="state problem" role="alert">{escape(text[:1].upper() + text[1:])}.</p>'


def progress(step: int, steps: int) -> str:
    """Return the progress of the work, ``step`` of ``steps`` being done."""
    words = f"Step {step} of {steps}" if steps > 1 else "Upscaling …"
    return (
        f'<p class="state working"><label>{words}'
        f'<progress max="{steps}" value="{step}" aria-label="Progress"></progress></label></p>'
    )


def viewer(session: Session) -> str:
    """Return the viewer of a session with an image: alone or, once there is one, compared with its result."""
    assert session.source is not None and session.display is not None
    height, width = session.source.image.shape
    address = f"images/{session.token}"
    after = compare = legend = downloads = ""
    if session.upscaled is not None:
        after = (
            f'<img class="after" data-layer="after" src="{address}/after.png" alt="The upscaled image">'
            + ("" if session.display.doubt is None else f'<img class="doubt" src="{address}/doubt.png" alt="">')
            + '<div class="line" aria-hidden="true"><span>bicubic</span><b></b><span>upscaled</span></div>'
        )
        compare = (
            '<label>Compare <output>50 %</output><input type="range" name="cut" min="0" max="100" value="50" '
            'aria-description="left of here bicubic, right of here upscaled"></label>'
        )
        downloads = links(session)
        if session.display.doubt is not None:
            compare += (
                "<label>Uncertainty <output>0 %</output>"
                '<input type="range" name="doubt" min="0" max="100" step="5" value="0"></label>'
            )
            legend = colour_bar(session.display.hottest)
    return VIEWER.substitute(
        address=address,
        width=width,
        height=height,
        after=after,
        compare=compare,
        legend=legend,
        downloads=downloads,
    )


def colour_bar(hottest: float) -> str:
    """Return the colour bar of the uncertainty, with ticks in gray levels of 255."""
    ticks = "".join(f"<span>{255 * hottest * part / (TICKS - 1):.1f}</span>" for part in range(TICKS))
    return (
        '<figure class="legend" hidden><figcaption>Uncertainty: half-width of the 90 % band, of 255 gray levels'
        f'</figcaption><div class="bar" style="background: linear-gradient(to right, {COLOURS})"></div>'
        f'<div class="ticks">{ticks}</div></figure>'
    )


def links(session: Session) -> str:
    """Return the links that download the result."""
    kinds = {"png": "PNG", "png16": "16-bit PNG"} | ({} if session.no_dicom else {"dicom": "DICOM"})
    found = "".join(
        f'<a href="results/{session.token}/{kind}" download>Download {name}</a>' for kind, name in kinds.items()
    )
    reason = f'<p class="hint">No DICOM: {escape(session.no_dicom)}.</p>' if session.no_dicom else ""
    return f'<p class="downloads">{found}</p>{reason}'


def description(session: Session) -> str:
    """Return what is known about an image and its result, in words."""
    assert session.source is not None
    height, width = session.source.image.shape
    words = [f"{session.name}: {width}×{height} pixels", *session.source.notes]
    if (result := session.upscaled) is not None:
        size = f"{SCALE * width}×{SCALE * height}"
        words = [f"{session.name}: {size} pixels in {result.seconds:.1f} s", notes_of(session.source, result)]
    return told("; ".join(filter(None, words)))
