import netrc
import stat
from urllib.parse import urlsplit

import pytest

from segray.config import RequestError
from segray.submit.credentials import write_netrc, write_token
from segray.tracking.client import base_url


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def host():
    return urlsplit(base_url()).netloc


def test_a_cluster_keeps_its_token(tmp_path):
    file = write_token(tmp_path / "one")
    token = file.read_text()
    assert len(token) == 64
    assert mode(file) == 0o600
    file.chmod(0o644)
    assert write_token(tmp_path / "one").read_text() == token
    assert mode(file) == 0o600
    assert write_token(tmp_path / "two").read_text() != token


def test_the_key_of_the_environment_comes_first(tmp_path, monkeypatch, host):
    mine = tmp_path / "mine"
    mine.write_text(f"machine {host} login me password fromfile\n")
    monkeypatch.setenv("NETRC", str(mine))
    monkeypatch.setenv("WANDB_API_KEY", "fromenv")
    file = write_netrc(tmp_path / "state")
    assert netrc.netrc(file).authenticators(host)[2] == "fromenv"
    assert mode(file) == 0o600


def test_of_a_netrc_only_wandbs_entry_goes_to_the_nodes(tmp_path, monkeypatch, host):
    mine = tmp_path / "mine"
    mine.write_text(
        f"machine bank.example login me password secret\nmachine {host} login me password key\n"
    )
    monkeypatch.setenv("NETRC", str(mine))
    text = write_netrc(tmp_path / "state").read_text()
    assert "key" in text
    assert "secret" not in text
    assert "bank" not in text


def test_where_no_key_is_known_the_file_is_empty_and_an_old_one_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "old")
    write_netrc(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY")
    file = write_netrc(tmp_path)
    assert file.read_text() == ""
    assert mode(file) == 0o600


def test_a_netrc_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("machine")
    monkeypatch.setenv("NETRC", str(tmp_path / "mine"))
    with pytest.raises(RequestError, match="mine, which may hold W&B's key, cannot be read"):
        write_netrc(tmp_path)
