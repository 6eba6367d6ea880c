"""Triton model ``superres``: decodes requests, runs them together through the networks, and answers each.

The method is in ``pipeline.method.upscale``; its networks are this server's models in ``pipeline.models.onnx_models``,
or their TensorRT plans, called by BLS. The preset is a parameter in ``config.pbtxt``.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.backends.calls import check_wanted, is_gone, networks
from pipeline.backends.failures import Failures, Unavailable
from pipeline.backends.jobs import Job, Limits, decode, output_tensors
from pipeline.backends.results import Audit, Cache, Metrics, image_hash, request_key
from pipeline.method.options import STOPPING, Options
from pipeline.method.upscale import Result, generator, upscale
from pipeline.presets import PRESETS
from pipeline.serving.drain import Closed, working
from pipeline.spec import CACHE_VARIABLE, INSTANCES, MAX_SIDE


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.preset = PRESETS[json.loads(args["model_config"])["parameters"]["preset"]["string_value"]]
        self.metrics, self.audit = Metrics(), Audit.of_server()
        self.cache = Cache(int(float(os.environ.get(CACHE_VARIABLE, 0)) * 1e6 / INSTANCES))
        self.limits = Limits.of_server(MAX_SIDE)
        self.failures = Failures(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Upscale all images, together if shape and options agree; an error only affects its own requests."""
        try:
            with working() as must_stop:
                return self._execute(requests, must_stop)
        except Closed:
            return [self.failures.answer(Unavailable(STOPPING), request, STOPPING) for request in requests]

    def _execute(self, requests: list[Any], must_stop: Callable[[], bool]) -> list[Any]:
        began = time.monotonic()
        errors: dict[int, Exception] = {}
        groups: dict[Any, list[Job]] = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                for job in decode(request, index, self.preset, self.limits):
                    groups[job.image.shape, job.options].append(job)
            except Exception as error:  # an invalid request must not affect the batch
                errors[index] = error
        results: dict[tuple[int, int], Result] = {}
        for (_, options), jobs in groups.items():
            gone = [partial(is_gone, requests[index], began) for index in {job.request for job in jobs}]
            try:
                found = self._results(jobs, options, partial(check_wanted, gone, must_stop))
                for job, result in zip(jobs, found, strict=True):
                    if self.audit and job.kept:
                        self.audit.write(requests[job.request], job, image_hash(result.upscaled))
                    results[job.request, job.row] = result
            except Exception as error:  # a failure only affects these requests
                errors |= {job.request: error for job in jobs}
        rows = [[results[key] for key in sorted(results) if key[0] == i] for i in range(len(requests))]
        return [
            self.failures.answer(errors[i], request, str(errors[i])) if i in errors else answer(request, rows[i])
            for i, request in enumerate(requests)
        ]

    def _results(self, jobs: list[Job], options: Options, interrupt: Callable[[], None]) -> list[Result]:
        """Return the results of jobs of one shape with the same options, from the cache where it has them."""
        cached = [i for i, job in enumerate(jobs) if job.kept and self.cache.size]
        keys = {i: request_key(jobs[i].image, jobs[i].seed, options, jobs[i].pixel_mm) for i in cached}
        found = {i: result for i, key in keys.items() if (result := self.cache.get(key)) is not None}
        hits, missing = len(found), [i for i in range(len(jobs)) if i not in found]
        if missing:
            made = self._upscale([jobs[i] for i in missing], options, interrupt)
            found |= zip(missing, made, strict=True)
        for i in missing:
            if i in keys:
                self.cache.put(keys[i], found[i])
        self.metrics.count([found[i].lr_error for i, job in enumerate(jobs) if job.kept], hits)
        return [found[i] for i in range(len(jobs))]

    def _upscale(self, jobs: list[Job], options: Options, interrupt: Callable[[], None]) -> list[Result]:
        """Upscale jobs of one shape with the same options."""
        return upscale(
            [job.image for job in jobs],
            [job.seed for job in jobs],
            generator(networks(self.preset, options.denoiser, interrupt), self.preset, options),
            self.preset,
            options,
            pixel_mm=[job.pixel_mm for job in jobs],
        )


def answer(request: Any, results: list[Result]) -> Any:
    return pb_utils.InferenceResponse(output_tensors(results, request.requested_output_names()))
