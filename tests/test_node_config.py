"""The node's configuration: every key is checked, and one line says what is wrong."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from client.node.__main__ import main
from client.node.config import SECTIONS, ConfigError, Retry, read_config
from pipeline import ROOT
from pipeline.method.options import OPTIONS
from tests.certificates import make_ca, make_certificate

EXAMPLE = ROOT / "deploy" / "node.toml"
LEAST = '[listen]\nae_title = "NODE"\nfolder = "{}"\n[destination]\nae_title = "PACS"\nhost = "pacs"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_the_least_configuration(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, LEAST.format(tmp_path)))
    assert (config.listen.host, config.listen.port, config.status.host) == ("127.0.0.1", 11112, "127.0.0.1")
    assert (config.listen_tls, config.destination_tls, config.token, config.options) == (None, None, None, {})


def test_the_example_is_valid_and_has_every_key() -> None:
    assert read_config(EXAMPLE).destination.port == 4242
    text = EXAMPLE.read_text()
    for name, kind in SECTIONS.items():
        part = text.partition(f"[{name}]")[2].partition("\n[")[0]
        assert [item.name for item in fields(kind) if not re.search(rf"^(# )?{item.name} = ", part, re.M)] == []
    for name, kind in SECTIONS.items():  # what is commented out is the default, if there is one
        part = text.partition(f"[{name}]")[2].partition("\n[")[0]
        stated = import_module("tomllib").loads("\n".join(re.findall(r"^# (\w+ = .*)$", part, re.M)))
        defaults = {item.name: item.default for item in fields(kind) if item.default is not None}
        for key, value in stated.items():
            if key in defaults:
                assert (tuple(value) if isinstance(value, list) else value) == defaults[key], key


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[status]\nport = 0", "'status.port' must be 1–65535, got 0"),
        ("[status]\nport = true", "'status.port' must be 1–65535, got True"),
        ("[status]\nprot = 1", "unknown key in [status] 'prot', must be one of host, port"),
        ("[stats]", "unknown section 'stats', must be one of listen, server, destination, output, retry, status, opt"),
        ("[server]\nprotocol = 'ftp'", "'server.protocol' must be 'grpc' or 'http', got 'ftp'"),
        ("[server]\ntoken_file = 'none'", "[server]: the token file 'none' cannot be read (No such file or directory)"),
        ("[server]\nca = 'none'", "[server]: the file of certificates 'none' cannot be read"),
        (
            "[server]\ntimeout = -1",
            "'server.timeout' must be a number of seconds, more than 0 and at most 86400, got -1",
        ),
        ("[options]\nsteps = 0", "[options]: 'steps' must be 1–300, got 0"),
        ("[options]\nseed = -1", "[options]: 'seed' must be"),
        ("[options]\nstep = 3", f"unknown key in [options] 'step', must be one of seed, {', '.join(OPTIONS)}"),
        ("[output]\ncompress = 'jpeg'", "'output.compress' must be 'jpeg2000' or 'jpeg-ls', got 'jpeg'"),
        ("[output]\nburn_in = 1", "'output.burn_in' must be true or false, got 1"),
        ("[retry]\ntries = 0", "'retry.tries' must be 1–100, got 0"),
        ("x = 1", "unknown key in [destination] 'x'"),
        ("tls_ca = 'a'", "[destination]: 'tls_ca' requires 'tls = true'"),
        ("tls = true\ntls_ca = 'none'", "'destination.tls_ca' must be a file of certificates (PEM), got 'none' (No su"),
        ("tls = true\ntls_cert = 'a'", "[destination]: 'tls_cert' and 'tls_key' go together"),
        ("=", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(write(tmp_path, LEAST.format(tmp_path) + more))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'listen.ae_title' is missing"),
        ("listen = 1", "'listen' must be a section, got 1"),
        ("[listen]\nae_title = 'x\\'\nfolder='a'", "'listen.ae_title' must be an AE title of 1–16 characters"),
        ("[listen]\nae_title = 'SEVENTEEN LETTERS'\nfolder='a'", "'listen.ae_title' must be an AE title of 1–16"),
        ("[listen]\nae_title = 'N'\nfolder='a'\nbody_parts='CHEST'", "'listen.body_parts' must be a list of strings"),
        ("[listen]\nae_title = 'N'\nfolder=''", "'listen.folder' must be a string that is not empty, got ''"),
        (LEAST.replace("folder", "tls_ca='a'\nfolder"), "[listen]: 'tls_ca' requires 'tls_cert' and 'tls_key'"),
    ],
)
def test_what_is_wrong_with_the_node_itself_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(write(tmp_path, text))


def test_certificates_are_loaded(tmp_path: Path) -> None:
    ca = make_ca(tmp_path, "ca")
    own = make_certificate(ca, "own")
    tls = f"tls_cert = '{own.chain}'\ntls_key = '{own.key}'\ntls_ca = '{ca.chain}'\n"
    config = read_config(
        write(tmp_path, LEAST.format(tmp_path).replace("[destination]", f"{tls}[destination]\ntls = true\n{tls}"))
    )
    assert config.listen_tls is not None and config.destination_tls is not None
    wrong = tls.replace(str(own.key), str(ca.key))
    with pytest.raises(ConfigError, match=str(ca.key)):
        read_config(write(tmp_path, LEAST.format(tmp_path).replace("[destination]", f"{wrong}[destination]")))


def test_pauses_double_up_to_the_longest() -> None:
    assert [Retry(first=1, longest=5).pause(n) for n in (1, 2, 3, 4, 5000)] == [1, 2, 4, 5, 5]


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, LEAST.format(tmp_path) + "port = 70000")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: 'destination.port' must be 1–65535, got 70000\n"
    assert main([str(tmp_path / "none.toml")]) == 2
    assert "none.toml' cannot be read: No such file or directory" in capsys.readouterr().err
    assert main([str(EXAMPLE), "--check"]) == 0


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "node.toml" in capsys.readouterr().out.partition("examples:")[2]
