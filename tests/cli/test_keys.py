"""`cosched keys` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosched.api import keys
from cosched.cli import main


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main.main(["keys", *args])
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err  # type: ignore[return-value]  # our commands exit with numbers


def test_a_key_is_made_allowed_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ("--keys", str(tmp_path / "keys"))
    code, out, _ = run(capsys, "new", "gnb1", *folder, "--json")
    made = json.loads(out)
    assert code == 0
    pair = keys.read_pair(Path(made["path"]))
    assert (pair.name, pair.public) == ("gnb1", made["public"])
    assert pair.secret not in out
    assert run(capsys, "allow", "gnb1", "--role", "publisher", "--ue", "*", "--cell", "cell0", *folder)[0] == 0
    assert run(capsys, "allow", "ann", "x" * 40, "--role", "operator", *folder)[0] == 0
    code, out, _ = run(capsys, "list", *folder, "--json")
    listed = json.loads(out)
    assert listed["pairs"] == [{"name": "gnb1", "public": pair.public}]
    assert [(i["name"], i["public"], i["role"]) for i in listed["allowed"]] == [
        ("gnb1", pair.public, "publisher"),
        ("ann", "x" * 40, "operator"),
    ]
    code, out, _ = run(capsys, "list", *folder)
    assert f"gnb1             {pair.public}  publisher for UE *; cell cell0" in out
    assert pair.secret not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("allow", "gnb", "x" * 40, "--role", "publisher"), "a publisher needs at least one of --ue"),
        (("allow", "ann", "x" * 40, "--role", "viewer", "--ue", "u"), "for publishers and clients, not for a viewer"),
        (("allow", "ann", "x" * 39, "--role", "viewer"), "a public key has 40 characters"),
        (("allow", "ann", "--role", "viewer"), "ann.key: No such file or directory; 'cosched keys new NAME'"),
        (("allow", "../ann", "--role", "viewer"), "1 to 63 letters"),
        (("new", "a b"), "1 to 63 letters"),
    ],
)
def test_wrong_usage_is_one_line(
    args: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *args, "--keys", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith("cosched: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_role_names_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "allow", "ann", "x" * 40, "--role", "root", "--keys", str(tmp_path))
    assert code == 2
    assert "'viewer', 'publisher', 'client', 'operator'" in err
