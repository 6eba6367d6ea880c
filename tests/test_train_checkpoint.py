"""Checkpoints: whole or not there."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from train import checkpoint

KEY = {"seed": 0}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    assert checkpoint.load(path, KEY) is None
    checkpoint.save(path, KEY, {"step": 3, "w": torch.arange(4)})
    state = checkpoint.load(path, KEY)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.arange(4))


def test_a_file_that_cannot_grow_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, KEY, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write '.*checkpoint\.pt': .*; the previous one is kept"):
            checkpoint.save(path, KEY, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoint.load(path, KEY) == {"step": 1, "key": KEY}


def test_a_full_disk_keeps_the_one_before(small_disk: Path) -> None:
    path = small_disk / "checkpoint.pt"
    checkpoint.save(path, KEY, {"step": 1})
    with pytest.raises(OSError, match=r"No space left on device; the previous one is kept"):
        checkpoint.save(path, KEY, {"step": 2, "weights": torch.zeros(1_000_000)})
    assert list(small_disk.iterdir()) == [path]
    assert checkpoint.load(path, KEY) == {"step": 1, "key": KEY}


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"seed": 1, "batch": 4}, {})
    with pytest.raises(
        ValueError, match=r"belongs to another run \(seed 1, not 2\): use another --run-dir, or remove it"
    ):
        checkpoint.load(tmp_path / "c.pt", {"seed": 2, "batch": 4})


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"'.*c\.pt' is not a checkpoint: remove it or use another --run-dir"):
        checkpoint.load(tmp_path / "c.pt", KEY)


def test_digest_tells_sets_of_files_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"1")
    before = checkpoint.files_digest(paths)
    assert checkpoint.files_digest(paths) == before
    assert checkpoint.files_digest(paths[:1]) != before
    paths[1].write_bytes(b"12")
    assert checkpoint.files_digest(paths) != before


def test_ema_follows_the_weights_slowly() -> None:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = checkpoint.EMA(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.update(module, step=1000)
    assert ema.module.weight.item() == pytest.approx(0.1)
    assert not ema.module.weight.requires_grad
    fresh = checkpoint.EMA(nn.Linear(1, 1), decay=0.9)
    fresh.update(module, step=0)
    assert fresh.module.weight.item() == pytest.approx(0.9, abs=0.2), "the first steps count more"


def test_parts_are_small_and_make_the_same_file(tmp_path: Path) -> None:
    path, parts = tmp_path / "checkpoint.pt", tmp_path / "parts"
    path.write_bytes(bytes(range(256)) * 10)
    assert [part.stat().st_size for part in checkpoint.split(path, parts, max_bytes=1000)] == [1000, 1000, 560]
    joined = tmp_path / "new" / "checkpoint.pt"
    checkpoint.join(parts, joined)
    assert joined.read_bytes() == path.read_bytes()
    assert checkpoint.MAX_PART_BYTES < 16_000_000


def test_parts_replace_those_of_a_longer_file(tmp_path: Path) -> None:
    path, parts = tmp_path / "checkpoint.pt", tmp_path / "parts"
    for content in (b"a long one", b"short"):
        path.write_bytes(content)
        checkpoint.split(path, parts, max_bytes=5)
    assert sorted(file.name for file in parts.iterdir()) == ["part-000", "parts.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("part-001", b"other", r"the parts in '.*' are damaged: their SHA-256 differs from parts\.json"),
        ("part-001", None, r"'.*part-001' is missing: the parts in '.*' are incomplete"),
        ("parts.json", None, r"'.*parts\.json' is missing: the parts in '.*' are incomplete"),
        ("parts.json", b"{}", r"'.*parts\.json' is damaged"),
    ],
)
def test_damaged_parts_leave_the_checkpoint_as_it_is(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path, parts = tmp_path / "checkpoint.pt", tmp_path / "parts"
    path.write_bytes(b"0123456789")
    checkpoint.split(path, parts, max_bytes=5)
    (parts / name).unlink() if content is None else (parts / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        checkpoint.join(parts, path)
    assert path.read_bytes() == b"0123456789"


def test_the_command_splits_and_joins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, parts = tmp_path / "checkpoint.pt", tmp_path / "parts"
    path.write_bytes(b"all of it")
    assert checkpoint.main(["split", str(path), str(parts)]) == 0
    path.unlink()
    assert checkpoint.main(["join", str(parts), str(path)]) == 0
    assert path.read_bytes() == b"all of it"
    capsys.readouterr()
    assert checkpoint.main(["split", str(tmp_path / "none.pt"), str(parts)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
