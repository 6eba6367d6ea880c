"""Call a model of a Triton server over gRPC with arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import tritonclient.grpc
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

Array = NDArray[Any]


def infer_inputs(library: ModuleType, arrays: Mapping[str, Array]) -> list[Any]:
    """Return the input tensors of a request by ``tritonclient.grpc`` or ``tritonclient.http``; strings as objects."""
    return [
        library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in arrays.items()
    ]


def infer(
    client: tritonclient.grpc.InferenceServerClient,
    model: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    timeout: float | None = None,
    headers: Mapping[str, str] | None = None,
    request_id: str = "",
) -> tuple[Array, ...]:
    """Return the outputs of a model.

    Args:
        client: an open connection.
        model: name of the model.
        inputs: arrays by tensor name.
        outputs: names of the tensors to return.
        timeout: seconds the server may take.
        headers: further headers of the call.
        request_id: ID of the request in the server's log.

    Raises:
        InferenceServerException: the server cannot be reached, or refuses or fails the request.
    """
    tensors = infer_inputs(tritonclient.grpc, inputs)
    requested = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
    answer = client.infer(
        model, tensors, outputs=requested, client_timeout=timeout, headers=headers, request_id=request_id
    )
    return tuple(answer.as_numpy(name) for name in outputs)
