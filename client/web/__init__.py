"""A web page that upscales images: ``python -m client.web``. The server is called as by any other client."""

from __future__ import annotations

import os

# read when Gradio is imported: the page calls nobody but the Triton server
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", HF_HUB_OFFLINE="1")
