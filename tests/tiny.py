"""The presets with networks as small as they can be, for what does not depend on their size.

As a command, ``python -m tests.tiny MODULE …`` is ``python -m MODULE …`` with these presets.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace

from pipeline.presets import BEST as SHIPPED_BEST
from pipeline.presets import PAPER as SHIPPED_PAPER
from pipeline.presets import PRESETS, Preset, RestorerSpec, VAESpec


def shrink(preset: Preset) -> Preset:
    """The same system with tiny networks."""
    unet = replace(
        preset.unet, base=8, multipliers=(1, 1, 2), middle_blocks=1, time_features=8, time_width=16, norm_groups=4
    )
    if isinstance(preset.vae, VAESpec):
        return replace(preset, unet=unet, vae=replace(preset.vae, block_out_channels=(8, 8, 8, 8), norm_groups=4))
    restorer = RestorerSpec(width=8, blocks=1, hidden=16)
    vae = replace(preset.vae, width=8, encoder_blocks=1, decoder_blocks=1, tail=4, restorer=restorer, doubt=4)
    return replace(preset, unet=unet, vae=vae)


PAPER, BEST = shrink(SHIPPED_PAPER), shrink(SHIPPED_BEST)
TINY = {preset.name: preset for preset in (BEST, PAPER)}

if __name__ == "__main__":
    PRESETS.update(TINY)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
