"""The generated configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pipeline.models import models, onnx_models, plan_models
from pipeline.presets import BEST, DEFAULT, PAPER, PRESETS, Preset
from pipeline.spec import Model
from pipeline.triton_config import config_files, config_of, config_text, main, read_config


@pytest.mark.parametrize(
    "model",
    [m for preset in PRESETS.values() for m in (*models(preset), *plan_models(preset))],
    ids=lambda m: f"{m.name}-{m.preset}",
)
def test_says_what_the_specification_says(model: Model) -> None:
    config = text_format.Parse(config_text(model), pb.ModelConfig())
    assert config.name == model.name
    assert config.max_batch_size == model.max_batch
    assert config.model_transaction_policy.decoupled == model.decoupled
    assert config.HasField("dynamic_batching")
    for found, tensor in zip([*config.input, *config.output], [*model.inputs, *model.outputs], strict=True):
        assert (found.name, tuple(found.dims)) == (tensor.name, tensor.dims)
        assert pb.DataType.Name(found.data_type) == f"TYPE_{tensor.dtype}"
    assert bool(config.model_warmup) == bool(model.warmup)
    assert config.parameters["preset"].string_value == (model.preset or "")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_what_is_exact_enough_in_bfloat16_can_run_by_openvino(preset: Preset) -> None:
    by_name = {model.name: model for model in models(preset)}
    for name in preset.bfloat16:
        config, usual = config_of(replace(by_name[name], backend="openvino")), config_of(by_name[name])
        assert (config.backend, config.parameters["HINT_BF16"].string_value) == ("openvino", "YES")
        assert (config.input, config.output, config.model_warmup) == (usual.input, usual.output, usual.model_warmup)


def test_openvino_configurations_lie_where_the_server_looks_for_them_by_name(tmp_path: Path) -> None:
    assert main(["--model-repository", str(tmp_path), "--preset", "paper"]) == 0
    found = {path.parts[-3] for path in tmp_path.glob("*/configs/openvino.pbtxt")}
    assert found == {"unet_onnx", "denoise", "vae_decoder"}


def test_a_plans_configuration_names_the_file_of_each_kind_of_gpu() -> None:
    model = plan_models(DEFAULT).denoiser
    config = text_format.Parse(config_text(model, {"9.0": "model_sm90.plan"}), pb.ModelConfig())
    assert (config.name, config.backend, config.default_model_filename) == ("unet_trt", "tensorrt", "model.plan")
    assert dict(config.cc_model_filenames) == {"9.0": "model_sm90.plan"}


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(ValueError, match="config.pbtxt': 1:"):
        read_config(tmp_path / "config.pbtxt")


def test_a_number_that_no_field_can_hold_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("model_warmup { batch_size: " + 30 * "9" + "}")
    with pytest.raises(ValueError, match="config.pbtxt': "):
        read_config(tmp_path / "config.pbtxt")


def test_the_repositorys_files_are_up_to_date() -> None:
    assert main(["--check", "--model-repository", str(Path(__file__).parents[1] / "model_repository")]) == 0


def test_a_repository_keeps_its_preset(tmp_path: Path) -> None:
    arguments = ["--model-repository", str(tmp_path)]
    assert main([*arguments, "--preset", "paper"]) == 0
    assert main(arguments) == 0
    assert main([*arguments, "--check", "--preset", "paper"]) == 0
    assert main([*arguments, "--check", "--preset", "best"]) == 1


def test_one_thread_configurations_change_that_alone() -> None:
    for preset in PRESETS.values():
        texts = config_files(preset)
        for model in onnx_models(preset):
            config = text_format.Parse(texts[f"{model.name}/configs/one_thread.pbtxt"], pb.ModelConfig())
            assert config.parameters.pop("intra_op_thread_count").string_value == "1"
            assert config == config_of(model)


def models_of(repository: Path) -> set[str]:
    return {path.name for path in repository.iterdir()}


def write_version(folder: Path, *files: str) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / "1" / name).write_text("")


def test_a_repository_holds_exactly_the_presets_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever this project wrote for the other preset goes: models, plans, second configurations, INT8 files."""
    arguments = ["--model-repository", str(tmp_path)]
    assert main([*arguments, "--preset", "best"]) == 0
    for model in onnx_models(BEST):
        write_version(tmp_path / model.name, "model.onnx", *(["model_int8.onnx"] if model.name in BEST.int8 else []))
    for plan in plan_models(BEST):
        write_version(tmp_path / plan.name, "model.plan", "model.json", "model_sm90.plan", "model_sm90.json")
        (tmp_path / plan.name / "config.pbtxt").write_text(config_text(plan))
    assert main([*arguments, "--check"]) == 0
    assert main([*arguments, "--check", "--preset", "paper"]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/superres_onnx/1/model.onnx: is not in pipeline/models.py for preset 'paper'" in out
    assert main([*arguments, "--preset", "paper"]) == 0
    kept = {model.name for model in (*models(PAPER), *[*plan_models(PAPER)][:3])}
    assert models_of(tmp_path) == kept
    assert [path.name for path in sorted((tmp_path / "vae_decoder" / "1").iterdir())] == ["model.onnx"]
    assert (tmp_path / "vae_decoder" / "configs" / "openvino.pbtxt").is_file()
    assert not (tmp_path / "vae_encoder" / "configs" / "openvino.pbtxt").exists()
    assert main([*arguments, "--check", "--preset", "paper"]) == 0
    assert main([*arguments, "--preset", "best"]) == 0
    assert models_of(tmp_path) == {model.name for model in (*models(BEST), *[*plan_models(BEST)][:3])}


def test_a_users_own_models_and_files_stay(tmp_path: Path) -> None:
    arguments = ["--model-repository", str(tmp_path), "--preset", "best"]
    assert main(arguments) == 0
    write_version(tmp_path / "denoise", "model.onnx")
    (tmp_path / "denoise" / "config.pbtxt").write_text('name: "denoise"  # of another project\n')
    for name in ("mine/configs/h100.pbtxt", "unet_onnx/configs/h100.pbtxt", "unet_onnx/2/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("max_batch_size: 1\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_writes_checks_and_notices_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model-repository", str(tmp_path)]
    assert main([*arguments, "--check"]) == 1
    assert not list(tmp_path.iterdir()), "--check writes nothing"
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    path = tmp_path / "unet_onnx" / "config.pbtxt"
    path.write_text(path.read_text().replace("dims: 8", "dims: 9"))
    capsys.readouterr()
    assert main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out.strip() == f"{path}: differs from pipeline/models.py"
