"""Who may call a server: files are checked before anything starts, and administration is closed unless opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.serving import ServeError
from pipeline.serving.access import ADMINISTRATION, GRPC_KEY, Access, find_access, read_certificate, read_token
from tests.certificates import make_ca, make_certificate


def make(folder: Path, name: str = "server", names: str = "DNS:localhost", days: int = 2) -> tuple[Path, Path]:
    made = make_certificate(make_ca(folder, f"{name}-ca"), name, names, days)
    return made.chain, made.key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Path, Path]:
    return make(folder)


def test_a_certificate_tells_the_name_it_is_for(pair: tuple[Path, Path]) -> None:
    certificate = read_certificate(*pair)
    assert (certificate.cert, certificate.key, certificate.name) == (*pair, "localhost")
    flags = Access(certificate).flags()
    assert {f"--grpc-server-cert={pair[0]}", f"--grpc-server-key={pair[1]}", "--grpc-use-ssl=true"} < set(flags)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("expired", {"days": -1}, r"--tls-cert: '.*expired\.pem' cannot be used: certificate has expired"),
        ("nobody", {"names": "email:nobody@example.org"}, r"--tls-cert: '.*nobody\.pem' must be valid for a host"),
    ],
)
def test_a_certificate_that_clients_would_refuse_is_refused(
    folder: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServeError, match=message):
        read_certificate(*make(folder, name, **options))


def test_a_key_of_another_certificate(folder: Path, pair: tuple[Path, Path]) -> None:
    _, other = make(folder, "other")
    with pytest.raises(ServeError, match=r"server\.pem' and --tls-key '.*other\.key'.*KEY_VALUES_MISMATCH"):
        read_certificate(pair[0], other)


def test_files_that_are_no_certificates(folder: Path, pair: tuple[Path, Path]) -> None:
    (folder / "text").write_text("no certificate")
    with pytest.raises(ServeError, match=r"--tls-cert '.*text' and --tls-key"):
        read_certificate(folder / "text", pair[1])
    with pytest.raises(ServeError, match=r"--tls-key: cannot read '.*none': No such file"):
        read_certificate(pair[0], folder / "none")
    with pytest.raises(ServeError, match="--tls-cert and --tls-key"):
        find_access(pair[0], None, None, None, False)


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "one\ntwo\n", "ä", "a,b", "a:b", "a=b", 'a"b', "x1\t"])
def test_a_file_without_one_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ServeError, match=r"--token-file: the token file '.*token' must be a token") as error:
        read_token(path, "--token-file")
    assert not text.strip() or text.strip() not in str(error.value).replace(str(path), "")


def test_a_token_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"--admin-token-file: the token file '.*none' cannot be read \(No such file"):
        read_token(tmp_path / "none", "--admin-token-file")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_token_may_end_its_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "token").write_bytes(f"s3cret{end}".encode())
    assert read_token(tmp_path / "token", "--token-file") == "s3cret"


def test_administration_is_closed_by_another_secret_at_every_start() -> None:
    first, second = (Access().flags() for _ in range(2))
    assert first != second
    assert all(flag.split("=")[1].split(":")[0].split(",") == list(ADMINISTRATION) for flag in first)
    assert Access(administration=True).flags() == []


def test_tokens_open_what_they_are_for() -> None:
    access = Access(token="use", admin_token="administer")
    grpc = [flag for flag in access.flags() if flag.startswith("--grpc")]
    assert grpc == [
        "--grpc-restricted-protocol=inference,model-config,metadata:authorization=Bearer use",
        f"--grpc-restricted-protocol={','.join(ADMINISTRATION)}:authorization=Bearer administer",
    ]
    assert access.headers() == {GRPC_KEY: "Bearer use"}
    assert access.secrets() == ["use", "administer"]
    assert "use" not in repr(access)
