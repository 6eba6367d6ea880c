"""Find a Triton Inference Server and run it in the foreground with a model repository.

python -m pipeline.serve
python -m pipeline.serve --http-port 9000 --grpc-port 9001 --metrics-port 9002
python -m pipeline.serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --token-file token
python -m pipeline.serve --model-repository my/repository -- --log-verbose=1
python -m pipeline.serve --runtime onnxruntime
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import ROOT
from pipeline.command_line import make_parser
from pipeline.serving.find import RUNTIMES
from pipeline.spec import MAX_WORK

REPOSITORY = ROOT / "model_repository" if (ROOT / "model_repository").is_dir() else Path("model_repository")
"""Model repository of this clone or, when installed, of the current directory."""


def make_serve_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        __doc__,
        "python -m pipeline.serve",
        "Start a Triton Inference Server in the foreground: an installed one, or else the one in the wheel "
        "nvidia-pytriton, without auto-completion of configurations. Flags after -- are passed to tritonserver.",
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=REPOSITORY, help="default: %(default)s")
    add(
        "--host",
        default="127.0.0.1",
        help="IPv4 address on which gRPC listens, such as 0.0.0.0 for all of this machine's; HTTP and metrics listen "
        "on 127.0.0.1, for a proxy in front (default: %(default)s, this machine only)",
    )
    add("--http-port", type=int, default=8000, help="default: %(default)s")
    add("--grpc-port", type=int, default=8001, help="default: %(default)s")
    add("--metrics-port", type=int, default=8002, help="default: %(default)s")
    add(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="runtime of the networks on a CPU; openvino uses INT8 and bfloat16 (default: openvino in the wheel's "
        "server without a GPU if the processor supports those that the preset uses, else onnxruntime)",
    )
    add(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not upscale a test image before reporting the server ready",
    )
    add("--tls-cert", type=Path, metavar="PEM", help="certificate of this server, for gRPC by TLS")
    add("--tls-key", type=Path, metavar="PEM", help="unencrypted key of the certificate")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with a token that callers must send (default: anyone who reaches the server may upscale)",
    )
    add(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help="file with a token for model control, shared memory, statistics, trace and logging (default: closed)",
    )
    add(
        "--open-administration",
        action="store_true",
        help="leave administration open to every caller: for measurements on this machine",
    )
    add(
        "--probe",
        action="store_true",
        help="start nothing: upscale a test image on the server that listens at these ports; status 0 if it is right",
    )
    add(
        "--max-work",
        type=int,
        default=MAX_WORK,
        metavar="N",
        help="maximum images × LR pixels × samples × steps per request (default: %(default)s, minutes on two cores)",
    )
    add(
        "--cache",
        type=float,
        default=0,
        metavar="MB",
        help="memory for results of earlier requests, which the same request gets again (default: none)",
    )
    add(
        "--audit",
        type=Path,
        metavar="FILE",
        help="append a JSON line per result: hashes of input, output and model, options, seed, time, caller",
    )
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: a line with time, level, source and message for everything that the server and its models print",
    )
    add(
        "--proxy-reports",
        type=int,
        metavar="PORT",
        help="UDP port of this machine at which the proxy reports callers over HTTP that are gone, whose work then "
        "ends (default: it goes on)",
    )
    add("extra", nargs="*", metavar="-- FLAG", help="any tritonserver flag")
    return parser
