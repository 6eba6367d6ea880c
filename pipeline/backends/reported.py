"""What the proxy in front reports of callers; its reports are received by ``pipeline.serving.gone``."""

from __future__ import annotations

import os
import re

from pipeline.spec import GONE_VARIABLE, REQUEST_ID


def is_reported(request_id: str) -> bool:
    """Whether the caller of the request to which the proxy gave an ID is gone."""
    folder = os.environ.get(GONE_VARIABLE)
    return bool(folder and re.fullmatch(REQUEST_ID, request_id)) and os.path.exists(f"{folder}/{request_id}")
