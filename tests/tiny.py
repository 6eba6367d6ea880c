"""The presets with networks as small as they can be, for what does not depend on their size.

As a command, ``python -m tests.tiny MODULE …`` is ``python -m MODULE …`` with these presets.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace

from pipeline.presets import BEST as SHIPPED_BEST
from pipeline.presets import PAPER as SHIPPED_PAPER
from pipeline.presets import PRESETS, DetailVAESpec, RestorerSpec, UNetSpec, VAESpec

UNET = UNetSpec(base=8, multipliers=(1, 1, 2), middle_blocks=1, time_features=8, time_width=16, norm_groups=4)
PAPER = replace(SHIPPED_PAPER, vae=VAESpec(block_out_channels=(8, 8, 8, 8), norm_groups=4), unet=UNET)
BEST = replace(
    SHIPPED_BEST,
    vae=DetailVAESpec(
        width=8,
        encoder_blocks=1,
        decoder_blocks=1,
        tail=4,
        restorer=RestorerSpec(width=8, blocks=1, hidden=16),
        doubt=4,
    ),
    unet=UNET,
)
TINY = {preset.name: preset for preset in (BEST, PAPER)}

if __name__ == "__main__":
    PRESETS.update(TINY)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
