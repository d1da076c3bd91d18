"""The configuration: what is wrong is one line, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosched.cli.main import main
from cosched.errors import BadInput
from cosched.serve.clients import digest_of
from cosched.serve.settings import load

MODEL = '[[models]]\nid = "m"\npath = "m"\n'


def told(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model: add"),
        ("v = 2\n" + MODEL, "v = 2: this version reads v = 1"),
        ('listen = "here"\n' + MODEL, "give host:port"),
        ('listen = "0.0.0.0:80"\n' + MODEL, "needs [[keys]]"),
        (f'listen = "[::]:80"\n{MODEL}[[keys]]\nname = "a"\nsha256 = "{digest_of("x")}"\n', "or behind_proxy = true"),
        (f'{MODEL}[[keys]]\nname = "a"\nsha256 = "sk-secret"\n', "sha256 is no digest"),
        (MODEL + MODEL, "'m' stands twice"),
        (MODEL + '[defaults]\nfallback = "never"\n', "one of keep, drop, local"),
        (MODEL + "[limits]\nrunning = 0\n", "running"),
        (MODEL + "[limits]\nruning = 1\n", "unknown field `runing`"),
        (MODEL + '[wired]\nues = ["a"]\n', "wired.cell"),
        (MODEL + '[tls]\ncert = "x"\n', "go together"),
        (MODEL + '[tls]\ncert = "/nowhere"\nkey = "/nowhere"\n', "no such file"),
        ("[", "serve.toml"),
        ("defaults = 3\n" + MODEL, "defaults"),
        (MODEL + '[log]\nlevel = "loud"\n', "log.level 'loud'"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--check", "--config", str(told(tmp_path, text))])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_key_has_what_it_does_not_say_from_the_defaults(tmp_path: Path):
    keys = f'[[keys]]\nname = "a"\nsha256 = "{digest_of("x")}"\nttft_ms = 7.0\n'
    settings = load(told(tmp_path, f'{MODEL}[defaults]\nue = "u"\ntpot_ms = 9.0\n{keys}')).settings
    (key,) = settings.keys
    assert (key.ue, key.ttft_ms, key.tpot_ms) == ("u", 7.0, 9.0)
    assert settings.address == ("127.0.0.1", 8080)
    assert settings.is_loopback


def test_a_new_key_fits_its_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit):
        main(["serve", "--new-key", "bob"])
    said = capsys.readouterr()
    settings = load(told(tmp_path, MODEL + said.err)).settings
    assert settings.keys[0].sha256 == digest_of(said.out.strip())


def test_no_file_says_where_an_example_is(tmp_path: Path):
    with pytest.raises(BadInput, match=r"docs/serve\.md"):
        load(tmp_path / "none.toml")
