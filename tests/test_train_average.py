"""Averages of weights folders: the mean of each number, with a record of what it is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.networks.unet import UNet
from pipeline.networks.vae import make_vae
from pipeline.networks.weights import digest, save_unet, save_vae
from pipeline.presets import BEST
from train import average


def make(folder: Path, seed: int) -> Path:
    """A weights folder with new networks."""
    torch.manual_seed(seed)
    vae, unet = make_vae(BEST.vae), UNet(BEST.unet)
    folder.mkdir()
    save_vae(vae, folder, {})
    save_unet(unet, folder, {"vae": digest(vae)})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("weights")
    return [make(root / f"w{seed}", seed) for seed in range(2)]


def test_every_number_is_the_mean_by_the_shares(folders: list[Path], tmp_path: Path) -> None:
    assert average.main([*map(str, folders), "--shares", "0.75", "0.25", "--out", str(tmp_path / "mine")]) == 0
    pairs = [average.load_pair(folder, BEST) for folder in (*folders, tmp_path / "mine")]
    for one, other, mine in zip(*pairs, strict=True):
        for name, value in mine.state_dict().items():
            expected = 0.75 * one.state_dict()[name] + 0.25 * other.state_dict()[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_the_restorer_may_have_shares_of_its_own(folders: list[Path], tmp_path: Path) -> None:
    options = ["--shares", "0.75", "0.25", "--restorer-shares", "0", "1", "--out", str(tmp_path / "mine")]
    assert average.main([*map(str, folders), *options]) == 0
    one, other, mine = (average.load_pair(folder, BEST)[0] for folder in (*folders, tmp_path / "mine"))
    torch.testing.assert_close(mine.restorer.state_dict(), other.restorer.state_dict())
    expected = 0.75 * one.out.weight + 0.25 * other.out.weight
    torch.testing.assert_close(mine.out.weight, expected, rtol=1e-5, atol=1e-7)


def test_shares_are_equal_if_none_are_given() -> None:
    assert average.check_shares("--shares", [], 4) == [0.25] * 4


def test_its_metadata_tell_of_what_it_is(folders: list[Path], tmp_path: Path) -> None:
    average.average_folders(folders, [], BEST, tmp_path)
    told = json.loads((tmp_path / "unet.json").read_text())
    vae, _ = average.load_pair(folders[0], BEST)
    assert told["average_of"][0]["weights"] == "w0"
    assert told["average_of"][0]["share"] == 0.5
    assert told["average_of"][0]["vae"] == digest(vae)
    assert {"preset", "command", "machine", "date"} <= told.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shares", "0.5"], "--shares must have one share per folder, got 1 for 2 folders"),
        (["--shares", "0.5", "0.6"], "--shares must be 0 or more and sum to 1, got 0.5 0.6"),
        (["--shares", "1.5", "-0.5"], "--shares must be 0 or more and sum to 1, got 1.5 -0.5"),
        (["--restorer-shares", "1"], "--restorer-shares must have one share per folder, got 1 for 2 folders"),
    ],
)
def test_impossible_shares_are_one_line(
    folders: list[Path], tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert average.main([*map(str, folders), "--out", str(tmp_path / "mine"), *more]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "mine").exists()


def test_a_folder_without_weights_is_one_line(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert average.main([str(folders[0]), str(tmp_path / "none"), "--out", str(tmp_path / "mine")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "none") in error
    assert error.count("\n") == 1


def test_what_is_averaged_is_not_replaced(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"--out must not be one of the averaged folders, got '.*w0'"):
        average.average_folders(folders, [], BEST, folders[0])
