"""Plans: what is asked of TensorRT, what is refused, and what is installed. The builder is TensorRT-RTX, on the CPU."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline import plan
from pipeline.plan import PlanError, Profile, profiles
from pipeline.serve import ROOT
from pipeline.spec import BEST, MAX_BATCH, MAX_SIDE, PAPER, Preset, network_models

rtx = pytest.importorskip("tensorrt_rtx_bindings")
