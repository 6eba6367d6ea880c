"""Which image goes where."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from client.formats.source import FileError
from client.jobs import PATTERN, Finder, Job, check_pattern, name_of


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 200)
    return root


def found(finder: Finder) -> tuple[dict[str, str], list[str]]:
    """({input's name: target's path}, messages)"""
    items = list(finder.jobs())
    jobs = {item.path.name: str(item.target) for item in items if isinstance(item, Job)}
    return jobs, [str(item) for item in items if isinstance(item, FileError)]


def test_a_folder_goes_beside_itself_in_order(tmp_path: Path) -> None:
    tree(tmp_path / "in", "b.PNG", "a.jpeg", "c.npy", "notes.txt", ".hidden.png", "._b.png", "sub/d.png", "x.png/y")
    (tmp_path / "in" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    jobs, problems = found(Finder([tmp_path / "in"]))
    assert list(jobs) == ["IM1", "a.jpeg", "b.PNG", "c.npy"]
    assert jobs["b.PNG"] == str(tmp_path / "in_x4" / "b_x4.png")
    assert problems == []


def test_recursive_keeps_the_tree(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.png", "p1/a.png", "p1/s/b.png", "p2/c.png", ".git/d.png", "out/e.png")
    (folder / "loop").symlink_to(folder)
    finder = Finder([folder], out=folder / "out", recursive=True)
    assert [
        (str(j.path.relative_to(folder)), str(j.target.relative_to(folder)))
        for j in finder.jobs()
        if isinstance(j, Job)
    ] == [
        ("a.png", "out/a_x4.png"),
        ("p1/a.png", "out/p1/a_x4.png"),
        ("p1/s/b.png", "out/p1/s/b_x4.png"),
        ("p2/c.png", "out/p2/c_x4.png"),
    ]


def test_files_go_beside_themselves_or_into_the_folder_or_to_the_file(tmp_path: Path) -> None:
    a = tree(tmp_path, "a.png") / "a.png"
    assert found(Finder([a]))[0] == {"a.png": str(tmp_path / "a_x4.png")}
    assert found(Finder([a], out=tmp_path / "o"))[0] == {"a.png": str(tmp_path / "o" / "a_x4.png")}
    assert found(Finder([a], out=tmp_path / "o.png", out_is_file=True))[0] == {"a.png": str(tmp_path / "o.png")}


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "scans", "a.png")
    monkeypatch.chdir(tmp_path / "scans")
    assert found(Finder([Path()]))[0] == {"a.png": str(tmp_path / "scans_x4" / "a_x4.png")}


def test_an_input_named_twice_is_one_job(tmp_path: Path) -> None:
    a = tree(tmp_path / "in", "a.png") / "a.png"
    assert found(Finder([tmp_path / "in", a, a])) == ({"a.png": str(tmp_path / "in_x4" / "a_x4.png")}, [])


def test_two_inputs_of_one_output(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.png", "a.tif")
    jobs, problems = found(Finder([folder]))
    assert list(jobs) == ["a.png"]
    assert "a.tif': its output" in problems[0]
    assert "--name '{name}_x4.png'" in problems[0]
    assert len(found(Finder([folder], pattern="{name}_x4.png"))[0]) == 2
    assert len(found(Finder([folder], pattern="{stem}-{suffix}.png"))[0]) == 2


@pytest.mark.parametrize(
    ("files", "inputs", "out", "pattern"),
    [
        (["a.png", "a_x4.png"], ["a.png", "a_x4.png"], None, None),
        (["in/a.tif", "in/a.png"], ["in/a.tif", "in/a.png"], "in", "{stem}.png"),
        (["in/a.tif", "other/a.png"], ["in", "other/a.png"], "other", "{stem}.png"),
        (["in/a.tif", "other/a.png"], ["in/a.tif", "other"], "other", "{stem}.png"),
    ],
)
def test_an_output_that_is_an_input_is_refused(
    tmp_path: Path, files: list[str], inputs: list[str], out: str | None, pattern: str | None
) -> None:
    tree(tmp_path, *files)
    paths = [tmp_path / name for name in inputs]
    finder = Finder(paths, tmp_path / out if out else None, pattern=pattern or PATTERN)
    jobs, problems = found(finder)
    assert any("is an input" in problem or "is a folder of inputs" in problem for problem in problems)
    assert not {str(tmp_path / name) for name in files} & set(jobs.values())


def test_an_output_folder_that_is_an_input_is_refused(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.png")
    assert found(Finder([folder], out=folder)) == (
        {},
        [f"'{folder}' is a folder of inputs: give -o another folder for the outputs"],
    )


def test_a_folder_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    tree(tmp_path / "in", "notes.txt")
    (problem,) = found(Finder([tmp_path / "in"]))[1]
    assert problem.startswith(f"'{tmp_path / 'in'}' has no images (.png, .jpg")
    tree(tmp_path / "in", "sub/a.png")
    assert found(Finder([tmp_path / "in"]))[1][0].endswith("use --recursive to read its folders too")


def test_links_that_lead_nowhere_end_no_listing(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.png", "z.png", "sub/b.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    os.mkfifo(folder / "pipe.png")
    jobs, problems = found(Finder([folder, tmp_path / "round" / "x.png"], recursive=True))
    assert (list(jobs), problems) == (["a.png", "z.png", "b.png", "x.png"], [])


def test_a_mediums_table_of_contents_is_no_image(tmp_path: Path) -> None:
    folder = tree(tmp_path / "cd", "a.png")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert list(found(Finder([folder]))[0]) == ["a.png"]


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(tmp_path / "in", "closed/a.png", "open/b.png")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    jobs, problems = found(Finder([folder], recursive=True))
    assert list(jobs) == ["b.png"]
    assert problems == [f"'{folder / 'closed'}' cannot be read: Permission denied"]


def test_the_first_job_comes_before_other_folders_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "a/1.png", "b/2.png")
    scandir, looked_at = os.scandir, []

    def noted(path: Path) -> object:
        looked_at.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    jobs = Finder([tmp_path / "a", tmp_path / "b"]).jobs()
    assert isinstance(next(jobs), Job)
    assert looked_at == ["a"]


@pytest.mark.alone
def test_the_time_is_linear_in_the_number_of_files(tmp_path: Path) -> None:
    """Quadratic, as it was, 8,000 files would take sixteen times as long as 2,000."""
    times = []
    for count in (2000, 8000):
        folder, found = tree(tmp_path / str(count), *(f"{i:06}.png" for i in range(count))), []
        for _ in range(5):  # the quickest is what it takes; the others also waited for a cold cache
            began = time.process_time()
            assert sum(1 for _ in Finder([folder]).jobs()) == count
            found.append(time.process_time() - began)
        times.append(min(found))
    assert times[1] < 10 * times[0]


@pytest.mark.parametrize("pattern", ["{stem}_x4.png", "{name}.PNG", "{stem}-{suffix}.png", "x4 {stem}.png"])
def test_patterns(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "out.png", "{stem}.jpg", "{stem}", "a/{stem}.png", "{stem", "{0}.png", "{}.png", "{other}{stem}.png",
        "{stem.__class__}.png", "{stem!r}.png", "{stem:>99}.png", ".{stem}.png", "",
    ],
)  # fmt: skip
def test_patterns_that_name_no_files_of_one_folder(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a file name that ends in .png and has"):
        check_pattern(pattern)


def test_names_keep_braces_and_signs_of_the_input() -> None:
    assert name_of("{stem}_x4.png", Path("a{b}.c.png")) == "a{b}.c_x4.png"
    assert name_of("{name}-{suffix}.png", Path("IM0001")) == "IM0001-.png"
