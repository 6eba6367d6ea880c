"""Batching shared by the Python-based backends: join requests along the batch axis, run them, split the answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.backends.failures import Failures
from pipeline.method.options import InvalidRequest

Feed = dict[str, Any]
"""Input name ⇒ array."""
RunFeed = Callable[[Feed], Mapping[str, Any]]
"""Input name ⇒ array, to output name ⇒ array."""
RunBatch = Callable[[Sequence[Feed]], Mapping[str, Any]]
"""Feeds to join along the batch axis ⇒ output name ⇒ joined array."""


def join_feeds(feeds: Sequence[Feed]) -> Feed:
    """Concatenate feeds along the batch axis."""
    return feeds[0] if len(feeds) == 1 else {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def warmup_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return the input shapes of a batched model's first warm-up request, without the batch axis; else None."""
    if config["max_batch_size"]:
        for request in config.get("model_warmup", []):
            return {name: tuple(map(int, i["dims"])) for name, i in request["inputs"].items()}
    return None


def int_parameter(parameters: dict[str, Any], name: str) -> int:
    """Return an integer from the configuration's ``parameters``; 0 by default.

    Raises:
        TritonModelException: the value is not a whole number.
    """
    text = parameters.get(name, {}).get("string_value", "0")
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"parameter '{name}' must be a whole number, got '{text}'")
    return int(text)


def required_input(request: Any, name: str) -> Any:
    """Return a required input tensor.

    Raises:
        InvalidRequest: the tensor is missing.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise InvalidRequest(f"input '{name}' is missing")
    return tensor


class Batches:
    """Answers a model's requests in batches with a function that runs the model."""

    def __init__(self, runtime: str, config: dict[str, Any], run: RunBatch) -> None:
        self.runtime, self.run = runtime, run
        self.failures = Failures(config["name"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [i["name"] for i in config["input"]]
        self.outputs = {o["name"]: pb_utils.triton_string_to_numpy(o["data_type"]) for o in config["output"]}

    def answer(self, requests: list[Any], read: Callable[[Any], Any]) -> list[Any]:
        """Run requests together if their input shapes agree in all but the batch axis.

        Args:
            requests: Triton's requests.
            read: convert an input tensor to the array that the runtime expects.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[tuple[int, Feed]]] = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                feed = {name: read(required_input(request, name)) for name in self.inputs}
            except Exception as error:  # an unreadable input fails its own request only
                responses[index] = self._failure(error, request)
                continue
            shapes = tuple((name, array.shape[1:]) for name, array in feed.items())
            groups[shapes if self.batched else index].append((index, feed))
        for members in groups.values():
            indices, feeds = zip(*members, strict=True)
            try:
                answers = self._run(feeds)
            except Exception as error:  # runtimes' exceptions have no common base
                answers = [self._failure(error, requests[index]) for index in indices]
            for index, answer in zip(indices, answers, strict=True):
                responses[index] = answer
        return responses

    def _failure(self, error: Exception, request: Any) -> Any:
        return self.failures.answer(error, request, f"{self.runtime}: {' '.join(str(error).split())}")

    def _run(self, feeds: Sequence[Feed]) -> list[Any]:
        """Run the feeds together and split the results."""
        found = self.run(feeds)
        results = [found[name] for name in self.outputs]
        if len(feeds) == 1:
            parts = [[result] for result in results]
        else:
            ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
            parts = [np.split(result, ends) for result in results]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(part[k], dtype=dtype))
                    for (name, dtype), part in zip(self.outputs.items(), parts, strict=True)
                ]
            )
            for k in range(len(feeds))
        ]


def open_batches(
    runtime: str, args: dict[str, str], load: Callable[[Path, dict[str, Any]], tuple[list[str], list[str], RunFeed]]
) -> Batches:
    """Load the ONNX file of a model with the arguments of ``initialize``.

    ``load``: (file, the model's configuration) ⇒ names of its inputs and of its outputs, and a function that runs it.

    Raises:
        TritonModelException: the file is missing or damaged, or its tensors are not those of the configuration.
    """
    config = json.loads(args["model_config"])
    path = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
    if not path.is_file():
        raise pb_utils.TritonModelException(f"model file '{path}' is missing")
    try:
        inputs, outputs, run = load(path, config)
    except Exception as error:  # runtimes' exceptions have no common base
        raise pb_utils.TritonModelException(f"{runtime} cannot load '{path}': {error}") from error
    batches = Batches(runtime, config, lambda feeds: run(join_feeds(feeds)))
    different = set(batches.inputs) ^ set(inputs), set(batches.outputs) - set(outputs)
    for kind, names, found, wrong in zip(
        ("input", "output"), (batches.inputs, batches.outputs), (inputs, outputs), different, strict=True
    ):
        if wrong:
            raise pb_utils.TritonModelException(
                f"the configuration's {kind}s are {sorted(names)}, the model file's are {sorted(found)}"
            )
    return batches
