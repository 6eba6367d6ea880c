"""A Triton model that runs PyTorch in its own process, like public diffusion examples, for comparison with ours.

``benchmarks.alternatives`` copies this file into a model repository. Image [H, W] in, upscaled image [4H, 4W] out, one
request at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.method.options import Options
from pipeline.method.upscale import upscale
from pipeline.networks import eager
from pipeline.presets import PRESETS


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        self.preset = PRESETS[parameters["preset"]]
        options = Options.of(self.preset, steps=int(parameters["steps"]))
        self.generate = eager.load(Path(parameters["weights"]), self.preset).generator(options)

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            (result,) = upscale([image], [0], self.generate, self.preset)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("upscaled", result.upscaled)]))
        return responses
