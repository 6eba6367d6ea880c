"""Send requests with mistakes to a real server: each is answered or refused, and the server works on as before.

python -m tests.fuzz_server
python -m tests.fuzz_server --requests 500 --seed 7
python -m tests.fuzz_server --first 4200 --requests 50    # some of them again

Every request is a valid one of a model of the repository with one to three things wrong with it, over gRPC, or over
HTTP in JSON or binary. Every 50th is a valid one of ``superres``, whose answer must be equal to the bit each time. What
is known to end or stall Triton itself, whatever the models do, is left out: docs/how-to/serve.md lists it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
from numpy.typing import NDArray
from tqdm import tqdm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from pipeline.command_line import make_parser
from pipeline.models import models, superres_model
from pipeline.presets import DEFAULT
from pipeline.remote import infer
from pipeline.serving.find import RUNTIMES
from pipeline.serving.local_server import free_ports, last_lines, running_server
from pipeline.spec import SCALE, Model, Tensor

Rng = np.random.Generator

ROUND = 50
"""Requests in a round: all but one have mistakes, and the last is valid."""
WORKERS = 4
"""Requests with mistakes at a time, so that the server batches some."""
LIMIT = 60.0
"""Seconds after which a request counts as a hang."""
REPEATS = 5
"""Most measurements of the time of valid requests afterwards."""
SLOWER = 2.0
"""How many times as long valid requests may take afterwards; a shared machine's speed varies."""
MAX_JSON = 10**6
"""Most elements that a JSON tensor declares over HTTP: more than a thousand times as many end Triton 2.51."""
SHM_BYTES = 4096
EXTREMES = (0, 1, 2, 3, 15, 17, 64, 513, -1, -2, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
DTYPES = (
    "BOOL",
    "UINT8",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
    "",
    "X",
)
NUMPY = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
WORDS = {
    "sampler": ("ddim", "ddpm"),
    "start": ("noise", "lr"),
    "output": ("sample", "mean"),
    "degradation": ("auto", "cubic", "area", "lanczos"),
    "denoiser": ("auto", "onnx", "trt"),
}
STRINGS = (b"", b"\0", b"\xff\xfe", "Röntgen".encode(), b"ddim\0", b"%s%n", b"x" * 5000, b"DDIM", b" ddim")
STRINGS_OUT = tuple(tensor.name for tensor in superres_model(DEFAULT).outputs if tensor.dtype == "STRING")
"""Outputs whose classification ends Triton 2.51."""
FLOATS = (math.nan, math.inf, -math.inf, -1e-30, 1e-45, 1.0000001, 3.4e38, -0.0)


@dataclass
class Input:
    """An input of a request; ``shape`` and ``dtype`` are what is declared."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes
    region: tuple[str, int, int] | None = None
    """Name, size and offset of a shared memory region to read instead."""


@dataclass
class Request:
    """A request, and how it is sent."""

    model: str
    inputs: list[Input]
    outputs: list[str]
    way: str
    """"grpc", "binary" or "json", both over HTTP."""
    version: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    wire: str = ""
    """What is wrong with its encoding."""


def strings(values: Sequence[bytes]) -> bytes:
    """Encode strings as Triton does: each after its length."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def valid_input(tensor: Tensor, shape: list[int], rng: Rng) -> Input:
    """Return an input of values that the specification allows, cheap to compute."""
    count = math.prod(shape)
    if tensor.dtype == "STRING":
        allowed = WORDS[tensor.name]
        return Input(tensor.name, "BYTES", shape, strings([str(rng.choice(allowed)).encode() for _ in range(count)]))
    low, high = tensor.range or (-2, 2)
    values: NDArray[Any]
    if tensor.dtype == "FP32":
        values = rng.uniform(low, high, count).astype(np.float32)
    else:
        values = rng.integers(int(low), int(min(high, 2)) + 1, count).astype(NUMPY[tensor.dtype])
    return Input(tensor.name, tensor.dtype, shape, values.tobytes())


def valid_request(model: Model, rng: Rng) -> Request:
    """Return a valid request of a model: a small image, and any optional inputs."""
    batch = min(int(rng.integers(1, 4)), model.max_batch)
    wanted = [tensor for tensor in model.inputs if not tensor.optional or rng.random() < 0.3]
    if model.warmup:
        shapes = [
            [batch, *(size // 4 if dim == -1 else size for dim, size in zip(tensor.dims, sizes, strict=True))]
            for tensor, sizes in zip(model.inputs, model.warmup, strict=True)
        ]
    else:
        sides = rng.integers(2, 24, 2).tolist()
        shapes = [[batch, *(sides if -1 in tensor.dims else tensor.dims)] for tensor in wanted]
    inputs = [valid_input(tensor, shape, rng) for tensor, shape in zip(wanted, shapes, strict=True)]
    outputs = [tensor.name for tensor in model.outputs if rng.random() < 0.7]
    return Request(model.name, inputs, outputs, str(rng.choice(["grpc", "binary", "json"])))


def break_shape(_: Request, tensor: Input, rng: Rng) -> None:
    shape = tensor.shape
    match rng.integers(5):
        case 0 if shape:
            shape[rng.integers(len(shape))] = int(rng.choice(np.array(EXTREMES, dtype=object)))
        case 1:
            shape.insert(int(rng.integers(len(shape) + 1)), int(rng.choice([0, 1, 2])))
        case 2 if shape:
            del shape[rng.integers(len(shape))]
        case 3:
            tensor.shape = [int(v) for v in rng.choice(np.array(EXTREMES, dtype=object), rng.integers(0, 9))]
        case _:
            rng.shuffle(shape)


def break_size(_: Request, tensor: Input, rng: Rng) -> None:
    """Another shape with as much data as it needs."""
    width = {"FP32": 4, "INT32": 4, "INT64": 8, "BOOL": 1}.get(tensor.dtype, 5)
    tensor.shape = [int(v) for v in rng.integers(0, 20, rng.integers(0, 5))]
    if rng.random() < 0.2:
        tensor.shape = [int(rng.integers(17, 3000)), *tensor.shape[-1:]]
    count = math.prod(tensor.shape)
    if count * width < 1 << 20:
        tensor.data = (tensor.data * (count * width // max(len(tensor.data), 1) + 1))[: count * width]


def break_sides(request: Request, tensor: Input, rng: Rng) -> None:
    """Another batch or side, with as much data as it needs: often for all inputs, so that the model sees them."""
    batch = int(rng.choice([0, 1, 2, 5, 16, 17, 40]))
    for one in request.inputs if rng.random() < 0.7 else [tensor]:
        if not one.shape or not one.data or not math.prod(one.shape):
            continue
        width = max(len(one.data) // math.prod(one.shape), 1)
        at = int(rng.integers(len(one.shape)))
        one.shape[at] = batch if at == 0 else int(rng.choice([0, 1, 2, 3, 7, 15, 33]))
        if rng.random() < 0.5:
            one.shape[0] = batch
        size = width * math.prod(one.shape)
        one.data = (one.data * (size // len(one.data) + 1))[:size]


def break_dtype(_: Request, tensor: Input, rng: Rng) -> None:
    tensor.dtype = str(rng.choice(DTYPES))


def break_data(_: Request, tensor: Input, rng: Rng) -> None:
    data = bytearray(tensor.data)
    match rng.integers(5):
        case 0:
            del data[rng.integers(len(data) + 1) :]
        case 1:
            data += rng.bytes(int(rng.integers(1, 40)))
        case 2:
            data = bytearray(rng.bytes(len(data)))
        case 3 if tensor.dtype == "FP32" and len(data) >= 4:
            at = 4 * int(rng.integers(len(data) // 4))
            data[at : at + 4] = np.float32(rng.choice(FLOATS)).tobytes()
        case _ if data:
            data[rng.integers(len(data))] = int(rng.integers(256))
    tensor.data = bytes(data)


def break_strings(request: Request, tensor: Input, rng: Rng) -> None:
    """Strings that no option is, or whose lengths are wrong."""
    options = [i for i in request.inputs if i.dtype == "BYTES"] or [tensor]
    tensor = options[rng.integers(len(options))]
    tensor.dtype = "BYTES"
    tensor.data = strings([STRINGS[rng.integers(len(STRINGS))] for _ in range(rng.integers(0, 5))])
    if rng.random() < 0.5 and len(tensor.data) >= 4:
        length = int(rng.choice([0, 1, 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        tensor.data = length.to_bytes(4, "little") + tensor.data[4:]


def break_values(_: Request, tensor: Input, rng: Rng) -> None:
    """Numbers of the right type that are out of range."""
    if tensor.dtype not in NUMPY:
        return
    kind: Any = NUMPY[tensor.dtype]
    values: NDArray[Any]
    if tensor.dtype == "FP32":
        values = np.full(len(tensor.data) // 4, rng.choice(FLOATS), kind)
    elif tensor.dtype == "BOOL":
        values = np.full(len(tensor.data), 255, np.uint8)
    else:
        limits = np.iinfo(kind)
        chosen = (limits.min, limits.max, -1, 0, 17, 301)[rng.integers(6)]
        values = np.full(len(tensor.data) // limits.dtype.itemsize, chosen, kind)
    tensor.data = values.tobytes()


def break_inputs(request: Request, tensor: Input, rng: Rng) -> None:
    """Inputs that are missing, given twice, unknown, or of another's name."""
    match rng.integers(5):
        case 0:
            request.inputs.remove(tensor)
        case 1:
            request.inputs.append(Input(tensor.name, tensor.dtype, list(tensor.shape), tensor.data))
        case 2:
            request.inputs.append(Input("unknown", "FP32", [1, 1], bytes(4)))
        case 3:
            tensor.name = str(
                rng.choice(["", "x", "image", "IMAGE", "lr", "a" * 3000, "\u2603", request.inputs[0].name])
            )
        case _:
            request.inputs = []


def break_outputs(request: Request, _: Input, rng: Rng) -> None:
    match rng.integers(3):
        case 0:
            request.outputs.append("unknown")
        case 1:
            request.outputs *= 2
        case _:
            request.outputs = []


def break_parameters(request: Request, _: Input, rng: Rng) -> None:
    """Flags of sequences, which no model here has, priorities and time limits of any type."""
    names = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "unknown", "triton_x", "")
    values: tuple[Any, ...] = (True, False, 0, 1, -1, 2**63 - 1, "", "1", "x" * 2000)
    for _time in range(rng.integers(1, 4)):
        request.parameters[str(rng.choice(names))] = values[rng.integers(len(values))]


def break_model(request: Request, _: Input, rng: Rng) -> None:
    if rng.random() < 0.5:
        request.version = str(rng.choice(["1", "2", "0", "-1", "x", "9" * 30, " 1"]))
    else:
        request.model = str(rng.choice(["none", "superres2", "SUPERRES", "a" * 3000, "superres "]))


def break_region(_: Request, tensor: Input, rng: Rng) -> None:
    """Data in shared memory: in a region that there is not, or that is too small, or at the wrong place in it."""
    sizes = (0, 1, len(tensor.data), SHM_BYTES, SHM_BYTES + 1, 2**31, 2**62)
    offsets = (0, 1, SHM_BYTES - 1, SHM_BYTES, 2**40, 2**63 - 1)
    name = str(rng.choice(["fuzz", "fuzz", "fuzz", "none", ""]))
    tensor.region = name, int(sizes[rng.integers(len(sizes))]), int(offsets[rng.integers(len(offsets))])


WIRES = ("cut", "long", "header", "negative", "text", "types", "ragged", "null", "size", "counts")


def break_wire(request: Request, _: Input, rng: Rng) -> None:
    """Mistakes in JSON, in sizes of binary data, in the number of binary tensors."""
    request.wire = str(rng.choice(WIRES))


BREAKS: tuple[Callable[[Request, Input, Rng], None], ...] = (
    *(break_shape, break_size, break_dtype, break_data, break_strings, break_values, break_inputs, break_outputs),
    *(break_parameters, break_model, break_region, break_wire),
)
REACHING = (break_sides, break_values, break_strings, break_outputs)
"""Those that Triton often lets through to the model."""


def broken_request(number: int, seed: int, every: Sequence[Model]) -> Request:
    """Return request ``number``, always the same for a seed: every second one is for the first model, ``superres``."""
    rng = np.random.default_rng((seed, number))
    model = every[0] if rng.random() < 0.5 else every[rng.integers(len(every))]
    request = valid_request(model, rng)
    breaks = BREAKS if rng.random() < 0.5 else REACHING
    for _ in range(rng.integers(1, 4)):
        if request.inputs:
            breaks[rng.integers(len(breaks))](request, request.inputs[rng.integers(len(request.inputs))], rng)
    for tensor in request.inputs:
        if tensor.shape[:2] == [0, 0]:  # Triton 2.51's Python backend never answers these
            tensor.shape[1] = 1
    return request


# sending


def parameter(value: Any) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    return pb.InferParameter(int64_param=value) if isinstance(value, int) else pb.InferParameter(string_param=value)


def grpc_message(request: Request) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=request.model, model_version=request.version)
    for name, value in request.parameters.items():
        message.parameters[name].CopyFrom(parameter(value))
    for tensor in request.inputs:
        one = message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
        if tensor.region:
            region, size, offset = tensor.region
            one.parameters["shared_memory_region"].string_param = region
            one.parameters["shared_memory_byte_size"].int64_param = size
            one.parameters["shared_memory_offset"].int64_param = offset
        elif request.wire in ("types", "ragged"):
            one.contents.fp32_contents.extend([0.5] * min(len(tensor.data), 64))
            if request.wire == "ragged":
                one.contents.bytes_contents.append(tensor.data[:64])
        else:
            message.raw_input_contents.append(tensor.data)
    for name in request.outputs:
        message.outputs.add(name=name)
    if request.wire == "counts":
        message.raw_input_contents.append(b"\0" * 4)
    elif request.wire == "cut" and message.raw_input_contents:
        message.raw_input_contents.pop()
    elif request.wire == "size":
        for output in message.outputs:
            if output.name not in STRINGS_OUT:
                output.parameters["classification"].int64_param = 2**40
    return message


def json_values(tensor: Input, wire: str) -> Any:
    """Return the input's data as JSON, flat as Triton accepts it."""
    if wire == "types":
        return {"values": 1}
    if wire == "null":
        return [None, "x", 1.5, True, [], {}]
    if tensor.dtype == "BYTES":
        found, data = [], tensor.data
        while len(data) >= 4:
            length = int.from_bytes(data[:4], "little")
            found.append(data[4 : 4 + length].decode(errors="replace"))
            data = data[4 + length :]
        return found
    kind = np.dtype(NUMPY.get(tensor.dtype, np.uint8))
    values: list[Any] = np.frombuffer(tensor.data[: len(tensor.data) // kind.itemsize * kind.itemsize], kind).tolist()
    return [values[:2], values[2:]] if wire == "ragged" else values


def http_message(request: Request) -> tuple[str, bytes, dict[str, str]]:
    """Return path, body and headers."""
    body, blobs = {"id": "fuzz", "inputs": [], "outputs": []}, []  # type: dict[str, Any], list[bytes]
    binary = request.way == "binary"
    for tensor in request.inputs:
        one: dict[str, Any] = {"name": tensor.name, "datatype": tensor.dtype, "shape": tensor.shape}
        if tensor.region:
            keys = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
            one["parameters"] = dict(zip(keys, tensor.region, strict=True))
        elif binary:
            one["parameters"] = {"binary_data_size": len(tensor.data) + (3 if request.wire == "size" else 0)}
            blobs.append(tensor.data)
        else:
            if math.prod(max(abs(side), 1) for side in tensor.shape) > MAX_JSON:
                one["shape"] = [min(abs(side), 8) for side in tensor.shape[:4]]
            one["data"] = json_values(tensor, request.wire)
        body["inputs"].append(one)
    body["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in request.outputs]
    if request.parameters:
        body["parameters"] = request.parameters
    text = json.dumps(body).encode()
    size = str(len(text))
    match request.wire:
        case "cut":
            text = text[: len(text) // 2]
        case "long":
            blobs.append(b"more")
        case "header":
            size, binary = str(len(text) + 10**6), True
        case "negative":
            size, binary = "-1", True
        case "text":
            size, binary = "many", True
        case "counts":
            blobs = blobs[:-1]
    version = f"/versions/{request.version}" if request.version else ""
    path = f"/v2/models/{request.model}{version}/infer".replace(" ", "%20")
    return path, text + b"".join(blobs), {"Inference-Header-Content-Length": size} if binary else {}


Outcome = str
"""What became of a request: "answered", "refused", "failed" (an internal error of a network), or what is wrong."""
ALLOWED = ("answered", "refused", "failed")


def judge(request: Request, status: str, message: str) -> Outcome:
    """Return what an error says about the server."""
    if status in ("DEADLINE_EXCEEDED", "TimeoutError"):
        return "hang"
    if status in ("UNAVAILABLE", "CANCELLED", "503"):
        # a model or version that there is not is unavailable to Triton, and what waits longer than it said
        late = "timeout" in request.parameters and "Request timeout expired" in message
        known = late or "unknown model" in message or "is not found" in message
        return "refused" if known else f"wrong: {status} {message}"
    if status in ("INTERNAL", "UNKNOWN", "500"):
        if message.startswith(("Unable to parse", "failed to parse")):
            return "refused"  # Triton's status for what is no proper JSON
        ours = message.startswith("superres: ") or "Failed to process the request" in message or "stub" in message
        return f"wrong: {status} {message}" if ours or request.model == "superres" else "failed"
    return "refused"


def judge_answer(request: Request, outputs: dict[str, tuple[str, list[int], bytes]]) -> Outcome:
    """Check what ``superres`` made of a request that it accepted."""
    if "upscaled" not in outputs or request.model != "superres" or request.wire == "size":
        return "answered"
    shape, data = outputs["upscaled"][1:]
    image = next(tensor for tensor in request.inputs if tensor.name == "image")
    values = np.frombuffer(data, np.float32)
    if list(shape[1:]) != [SCALE * side for side in image.shape[1:]] and not image.region:
        return f"wrong: {image.shape} became {shape}"
    return "answered" if values.size and values.min() >= 0 and values.max() <= 1 else "wrong: not in [0, 1]"


class Target:
    """The server, over both protocols."""

    def __init__(self, url: str, http_port: int) -> None:
        self.url, self.http_port = url, http_port
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(url, options=options)
        self.stub = GRPCInferenceServiceStub(self.channel)

    def send(self, request: Request) -> Outcome:
        return self.send_grpc(request) if request.way == "grpc" else self.send_http(request)

    def send_grpc(self, request: Request) -> Outcome:
        message = grpc_message(request)
        try:
            if request.model == "superres_stream":
                stream = self.stub.ModelStreamInfer(
                    iter([message]), timeout=LIMIT, metadata=[("triton_grpc_error", "true")]
                )
                *_, answer = (one.infer_response for one in stream)
            else:
                answer = self.stub.ModelInfer(message, timeout=LIMIT)
        except grpc.RpcError as error:
            return judge(request, error.code().name, error.details() or "")
        found = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return judge_answer(request, {o.name: (o.datatype, list(o.shape), data) for o, data in found})

    def send_http(self, request: Request) -> Outcome:
        path, body, headers = http_message(request)
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=LIMIT)
        try:
            connection.request("POST", path.encode().decode("latin-1"), body, {"Connection": "close", **headers})
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError:
            return "hang"
        except (OSError, http.client.HTTPException) as error:
            return f"wrong: no answer over HTTP ({type(error).__name__})"
        finally:
            connection.close()
        if answer.status == 200:
            return "answered"
        try:
            message = str(json.loads(text)["error"])
        except (ValueError, LookupError, TypeError):
            message = ""
        return judge(request, str(answer.status), message)


@contextlib.contextmanager
def region(target: Target) -> Iterator[None]:
    """A shared memory region "fuzz" of ``SHM_BYTES`` at the server, after tries to register wrong ones."""
    path = Path("/dev/shm") / f"fuzz-{os.getpid()}"
    path.write_bytes(bytes(SHM_BYTES))
    register = target.stub.SystemSharedMemoryRegister
    wrong = (("gone", "/no-such-key", 0, 64), ("empty", f"/{path.name}", 0, 0), ("far", f"/{path.name}", 2**40, 64))
    try:
        register(pb.SystemSharedMemoryRegisterRequest(name="fuzz", key=f"/{path.name}", byte_size=SHM_BYTES))
        for name, key, offset, size in wrong:
            with contextlib.suppress(grpc.RpcError):
                register(pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size))
        yield
    finally:
        path.unlink()


def descendants(pid: int) -> set[int]:
    """Return the process IDs of a process's children, and theirs."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found |= {child, *descendants(child)}
    return found


IMAGE = np.random.default_rng(0).random((1, 29, 31), dtype=np.float32)


def valid_answer(client: tritonclient.grpc.InferenceServerClient) -> bytes:
    outputs = ["upscaled", "spread", "lr_error", "noise", "expected_error"]
    return b"".join(array.tobytes() for array in infer(client, "superres", {"image": IMAGE}, outputs, LIMIT))


def milliseconds(client: tritonclient.grpc.InferenceServerClient, count: int = 30) -> float:
    """Return the median time of valid requests."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        valid_answer(client)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


@dataclass
class Report:
    """What became of the requests."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(way, model, outcome) ⇒ requests."""
    faults: list[str] = field(default_factory=list)
    before_ms: float = 0.0
    after_ms: float = 0.0
    processes: int = 0


def check_server(
    report: Report, client: tritonclient.grpc.InferenceServerClient, every: Sequence[Model], processes: set[int]
) -> bool:
    """Check that the server's processes are the same, and every model is ready; add faults to the report."""
    gone = processes - descendants(os.getpid())
    if gone:
        report.faults.append(f"{len(gone)} of the server's {len(processes)} processes ended")
        return False
    report.faults += [f"{model.name} is not ready any more" for model in every if not client.is_model_ready(model.name)]
    return True


def fuzz(requests: int, seed: int, first: int = 0, runtime: str = "auto") -> Report:
    """Send requests ``first`` to ``first + requests - 1`` of a seed to a private server."""
    every, report = models(DEFAULT), Report()
    (port,), earlier = free_ports(1), descendants(os.getpid())
    assert every[0] == superres_model(DEFAULT)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(running_server(folder / "log", flags=[f"--runtime={runtime}"], http=port))
        processes = descendants(os.getpid()) - earlier
        report.processes = len(processes)
        target = Target(url, port)
        stack.enter_context(region(target))
        client = stack.enter_context(tritonclient.grpc.InferenceServerClient(url))
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        expected = valid_answer(client)
        report.before_ms = milliseconds(client)
        bar = stack.enter_context(tqdm(total=requests, unit="request", disable=None))
        for start in range(first, first + requests, ROUND):
            numbers = range(start, min(start + ROUND - 1, first + requests))
            sent = [broken_request(number, seed, every) for number in numbers]
            valid = pool.submit(valid_answer, client)  # beside those with mistakes, which must not change it
            for number, request, outcome in zip(numbers, sent, pool.map(target.send, sent), strict=True):
                kind = outcome if outcome in ALLOWED else outcome.partition(":")[0]
                name = request.model if request.model in [model.name for model in every] else "unknown"
                report.counts[request.way, name, kind] += 1
                if outcome not in ALLOWED:
                    report.faults.append(f"request {number}, {request.way}, {request.model[:20]}: {outcome[:300]}")
            try:
                if not check_server(report, client, every, processes):
                    report.faults.append(f"the server's last lines: {last_lines(folder / 'log')}")
                    return report
                same = valid.result() == expected
            except tritonclient.grpc.InferenceServerException as error:
                report.faults.append(f"after requests {numbers[0]} to {numbers[-1]}: {error}")
                return report
            report.counts["grpc", "superres", "valid"] += 1
            if not same:
                report.faults.append(f"after requests {numbers[0]} to {numbers[-1]}, a valid answer differs")
            bar.update(len(numbers) + 1)
        # what else this machine does slows single measurements
        for _ in range(REPEATS):
            report.after_ms = milliseconds(client)
            if report.after_ms <= SLOWER * report.before_ms:
                break
        if report.after_ms > SLOWER * report.before_ms:
            report.faults.append(f"valid requests took {report.before_ms:.1f} ms, and now {report.after_ms:.1f} ms")
        target.channel.close()
    return report


def table(counts: Counter[tuple[str, str, str]]) -> str:
    """Return the outcomes of every model by way of sending."""
    kinds = sorted({kind for _, _, kind in counts})
    rows = sorted({(model, way) for way, model, _ in counts})
    lines = [f"{'model':15}{'sent by':10}" + "".join(f"{kind:>10}" for kind in kinds)]
    for model, way in rows:
        lines.append(f"{model:15}{way:10}" + "".join(f"{counts[way, model, kind]:10}" for kind in kinds))
    totals = [sum(n for (_, _, k), n in counts.items() if k == kind) for kind in kinds]
    return "\n".join([*lines, f"{'all':25}" + "".join(f"{total:10}" for total in totals)])


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m tests.fuzz_server")
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: %(default)s)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="as of pipeline.serve")
    args = parser.parse_args(argv)
    report = fuzz(args.requests, args.seed, args.first, args.runtime)
    print(table(report.counts))
    print(
        f"{report.processes} server processes; a valid request took {report.before_ms:.1f} ms before and "
        f"{report.after_ms:.1f} ms after"
    )
    for fault in report.faults:
        print(f"fault: {fault}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
