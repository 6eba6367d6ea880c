"""Training data: whose image it is, the patient-wise split, pairs of tensors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.presets import PAPER
from train.data import PairDataset, list_pairs, patient_of, read_gray, read_index, split_by_patient
from train.paper import AUGMENTATION, SPLIT

SHARES = SPLIT


@given(
    counts=st.lists(st.integers(1, 5), min_size=20, max_size=60),
    shares=st.one_of(
        st.just((0.9, 0.1, 0.0)),
        st.tuples(*[st.floats(0.1, 1)] * 3).map(lambda s: tuple(share / sum(s) for share in s)),
    ),
    seed=st.integers(0, 2**31),
)
def test_no_patient_is_on_two_sides_and_no_file_is_lost(
    counts: list[int], shares: tuple[float, float, float], seed: int
) -> None:
    paths = [Path(f"{p:08}_{i:03}.png") for p, n in enumerate(counts) for i in range(n)]
    sides = split_by_patient(paths, shares, seed=seed)
    assert sorted(p for side in sides.values() for p in side) == paths
    patients = [{patient_of(p, {}) for p in side} for side in sides.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert all(abs(len(side) - share * len(counts)) <= 1.001 for side, share in zip(patients, shares, strict=True))


def test_split_depends_on_nothing_but_patients_and_seed() -> None:
    paths = [Path(f"{p:08}_000.png") for p in range(50)]
    assert split_by_patient(paths, SHARES) == split_by_patient(paths[::-1], SHARES)
    assert split_by_patient(paths, SHARES, seed=1) != split_by_patient(paths, SHARES, seed=2)


@pytest.mark.parametrize(
    ("shares", "patients", "message"),
    [
        (SHARES, 3, "3 patients are too few to give test a share of 0.1"),
        ((0.7, 0.2, 0.2), 50, "must be three shares of the patients that sum to 1"),
        ((1.2, -0.1, -0.1), 50, "must be three shares of the patients that sum to 1"),
    ],
)
def test_impossible_splits(shares: tuple[float, float, float], patients: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_patient([Path(f"{p:08}_000.png") for p in range(patients)], shares)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("00000061_012.png", "00000061"),
        ("CXR1000_IM-0003-1001.png", "1000"),
        ("1000_IM-0003-1001.png", "1000"),
        ("006f3a8a.png", "p7"),
    ],
)
def test_patients_are_known_by_nih_and_openi_names_and_by_an_index(tmp_path: Path, name: str, patient: str) -> None:
    (tmp_path / "index.csv").write_text("set,file,patient\nmhh,006f3a8a.png,p7\n")
    assert patient_of(Path("x") / name, read_index(tmp_path / "index.csv")) == patient


def test_an_index_names_files_whatever_their_suffix(tmp_path: Path) -> None:
    """train.pairs makes scan.png of scan.jpg; spreadsheets write a byte order mark."""
    (tmp_path / "index.csv").write_text("file,patient\nday1/scan.jpg,p7\n", encoding="utf-8-sig")
    assert patient_of(Path("HR_256/scan.png"), read_index(tmp_path / "index.csv")) == "p7"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.png,", "line 3: file or patient is missing"),
        ("b.png", "line 3: file or patient is missing"),
        ("a.jpg,p2", "line 3: 'a.jpg' already has another patient"),
    ],
)
def test_an_index_with_gaps_or_contradictions_is_refused(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "index.csv").write_text(f"file,patient\na.png,p1\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path / "index.csv")


def test_unknown_patients_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no patient ID in the file name 'scan\.png' .* use --index with a CSV file"):
        patient_of(Path("scan.png"), read_index(None))
    (tmp_path / "index.csv").write_text("name,patient\n")
    with pytest.raises(ValueError, match="must have the columns file and patient, missing: file"):
        read_index(tmp_path / "index.csv")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs of random images."""
    rng = np.random.default_rng(0)
    for folder, size in (("HR_256", 256), ("LR_64", 64)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            image = rng.integers(0, 256, (size, size), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"0000000{i}_000.png"), image)
    return tmp_path


def test_batches_are_pairs_in_the_networks_range(pairs: Path) -> None:
    lr, hr = next(iter(DataLoader(PairDataset(list_pairs(pairs), PAPER.data), batch_size=2)))
    assert lr.shape == (2, 3, 64, 64)
    assert hr.shape == (2, 3, 256, 256)
    assert lr.dtype == hr.dtype == torch.float32
    image = read_gray(pairs / "HR_256" / "00000001_000.png", 256)
    np.testing.assert_allclose((hr[1, 0] + 1) / 2 * 255, image, atol=1e-4)


def test_an_item_depends_on_seed_and_number_alone(pairs: Path) -> None:
    def augmented(seed: int) -> PairDataset:
        return PairDataset(list_pairs(pairs), PAPER.data, AUGMENTATION["paper"], passes=10, seed=seed)

    one, same, other = augmented(1), augmented(1), augmented(2)
    assert len(one) == 20
    assert all(torch.equal(a, b) for i in (19, 3, 7) for a, b in zip(one[i], same[i], strict=True))
    assert any(not torch.equal(one[i][1], other[i][1]) for i in range(20))
    assert any(not torch.equal(one[0][1], one[i][1]) for i in range(2, 20, 2)), "every pass is augmented anew"


def test_wrong_folders_and_files_are_refused_with_advice(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no HR_256/ and LR_64/: run  python -m train\.pairs"):
        list_pairs(tmp_path / "nothing")
    (pairs / "LR_64" / "00000001_000.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 files of '.*HR_256' are missing from LR_64/, the first is 00000001_000\.png"
    ):
        list_pairs(pairs)
    path = tmp_path / "a.png"
    path.write_text("text")
    with pytest.raises(ValueError, match=r"'.*a\.png' is not a readable image"):
        read_gray(path, 256)
    for image, found in (
        (np.zeros((256, 300), np.uint8), "300x256, uint8, 1 channel"),
        (np.zeros((256, 256), np.uint16), "256x256, uint16, 1 channel"),
        (np.zeros((256, 256, 3), np.uint8), "256x256, uint8, 3 channel"),
    ):
        cv2.imwrite(str(path), image)
        with pytest.raises(ValueError, match=f"must be 256x256, uint8, 1 channel, got {found}"):
            read_gray(path, 256)


@pytest.mark.parametrize("text", [b"file,patient\n\xff.png,1\n", b"file,patient\n" + b"x" * 140_000 + b",1\n"])
def test_an_index_that_is_no_csv_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "index.csv").write_bytes(text)
    with pytest.raises(ValueError, match=r"index\.csv' must be a CSV file in UTF-8: "):
        read_index(tmp_path / "index.csv")
