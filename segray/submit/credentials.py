"""What a cluster's nodes must know and nobody else may: Ray's token, and W&B's key."""

from __future__ import annotations

import netrc
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from segray.config import RequestError
from segray.submit.cluster_file import write_private
from segray.tracking.client import base_url


def write_token(folder: Path) -> Path:
    """The file with the secret that this cluster's Ray asks for, mode 0600; made once."""
    file = folder / "token"
    if not file.is_file() or not file.read_text(encoding="utf-8").strip():
        write_private(file, secrets.token_hex(32))
    file.chmod(0o600)
    return file


def write_netrc(folder: Path) -> Path:
    """A netrc that holds W&B's entry alone, mode 0600; an empty one where no key is known here.

    The key is that of WANDB_API_KEY, or else of the user's netrc. It is not kept: what is known now
    is what nodes get. Raises RequestError for a netrc that cannot be read.
    """
    host = urlsplit(base_url()).netloc
    key = os.environ.get("WANDB_API_KEY") or _key_in_netrc(host)
    file = folder / "netrc"
    write_private(file, f"machine {host}\n  login user\n  password {key}\n" if key else "")
    return file


def _key_in_netrc(host: str) -> str | None:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        login = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError) as error:
        raise RequestError(
            f"{path}, which may hold W&B's key, cannot be read ({error}): put it right, or set "
            "WANDB_API_KEY"
        ) from None
    return login[2] if login else None
