"""The page's layout, and which action each of its elements triggers."""

from __future__ import annotations

import gradio as gr

from client.formats.kinds import SUFFIXES
from client.web import viewer
from client.web.site import FAITHFUL, Site
from pipeline.presets import DEFAULT
from pipeline.spec import MAX_SAMPLES, SCALE

TITLE = f"Chest X-ray super-resolution ×{SCALE}"
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],  # the default ones come from a server of Google's
    font_mono=["ui-monospace", "monospace"],
).set(
    # legible: the default ones are light gray on white
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color_dark="*neutral_300",
)


def build(site: Site, at_once: int) -> gr.Blocks:
    """Build the page; ``at_once`` images are upscaled at the same time, further ones wait."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>")
        gr.HTML(viewer.CAUTION_HTML)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(
                    label="PNG, JPEG, TIFF, DICOM or .npy", file_types=[*SUFFIXES, ""], height=160, elem_id="file"
                )
                upscale = gr.Button("Upscale", variant="primary", interactive=False, elem_id="upscale")
                cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                with gr.Accordion("Options", open=False):
                    samples = gr.Slider(
                        1, MAX_SAMPLES, 1, step=1, label="Samples", info="their spread shows where detail was guessed"
                    )
                    steps = gr.Number(
                        0, precision=0, label="Steps", info=f"1 to {DEFAULT.diffusion.T}; 0: the preset's"
                    )
                    seed = gr.Number(0, precision=0, label="Seed", info="of the noise")
                    faithful = gr.Dropdown(
                        [*FAITHFUL],
                        value=next(iter(FAITHFUL)),
                        filterable=False,
                        label="Faithful",
                        info="whether reducing the result must give the image again",
                    )
                    factor = gr.Slider(
                        1,
                        16,
                        1,
                        step=1,
                        label="Reduce the image first by",
                        info="1: not; set for images that are too large",
                    )
            with gr.Column(scale=3, min_width=320):
                state = gr.HTML(viewer.told("Drop an image, or choose one."), elem_id="state")
                picture = gr.HTML(elem_id="picture")
        # Gradio's own preparation of uploads leaves empty files, and downloads what is an address
        file.upload(
            site.receive, [file], [file, state, picture, factor, upscale], preprocess=False, show_progress="hidden"
        )
        upscale.click(site.start, None, [state, upscale, cancel], queue=False, show_progress="hidden").then(
            site.upscale,
            [samples, steps, seed, faithful, factor],
            [state, picture, upscale, cancel],
            concurrency_limit=at_once,
            show_progress="hidden",
        )
        cancel.click(site.cancel, None, [state, upscale, cancel], queue=False, show_progress="hidden")
        page.unload(site.leave)
    return page.queue(api_open=False)
