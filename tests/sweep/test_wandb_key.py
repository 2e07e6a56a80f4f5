"""The key of a W&B account reaches no file, log, pickle or process list."""

import base64
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

KEY = "5ecre7" * 7  # 42 characters, found nowhere by chance
# As it stands, and as HTTP has it in the header of a request.
TRACES = (KEY.encode(), base64.b64encode(b"api:" + KEY.encode()).rstrip(b"="))


class Watch(threading.Thread):
    """Looks, while the context lasts, for the key in the command lines of all processes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen, self.looks, self._over = set(), 0, threading.Event()

    def run(self):
        while not self._over.wait(0.05):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:  # it has ended
                    continue
                if any(trace in line for trace in TRACES):
                    self.seen.add(line)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()


def files_with_the_key(*folders):
    files = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return [path for path in files if any(trace in path.read_bytes() for trace in TRACES)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_the_key_stays_where_it_is(place, sweep_file, server, tmp_path, monkeypatch):
    kept = tmp_path / "kept"  # where the person has the key, and nothing else
    kept.mkdir()
    monkeypatch.setenv("NETRC", str(kept / "netrc"))
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        login = f"machine {server.url.removeprefix('http://')} login user password {KEY}\n"
        (kept / "netrc").write_text(login)
        (kept / "netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    left = tmp_path / "left"
    for name in ("HOME", "TMPDIR", "SEGRAY_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        (left / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(left / name))
    file = sweep_file(
        run_cap=2,
        storage=str(left / "runs"),
        tracking={"wandb": {"mode": "auto", "images": 1}},
        final={"seeds": [7], "workers": 2},
    )

    def segray(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "segray", *map(str, arguments)],
            cwd=left,
            capture_output=True,
            text=True,
            timeout=300,
        )

    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("RAY_TMPDIR", short)  # sockets have short names
        with Watch() as watch:
            sweep = segray("sweep", file)
            assert sweep.returncode == 0, sweep.stderr
            assert len(server.runs) == 3  # it was used
            folder = left / "runs/tiny"
            shutil.rmtree(folder / "wandb")
            server.runs.clear()
            sync = segray("sync", folder)
        assert sync.returncode == 0, sync.stderr
        assert len(server.runs) == 3
        assert watch.looks > 10
        assert watch.seen == set()
        assert list(Path(short).rglob("*.log"))  # of Ray's session
        assert list(left.rglob("*.wandb"))
        assert files_with_the_key(left, short) == []
    for said in (sweep.stdout, sweep.stderr, sync.stdout, sync.stderr):
        assert KEY not in said
    assert not any(KEY.encode() in body for _, _, body in server.requests)


def test_the_watch_sees_a_key(tmp_path):
    with Watch() as watch:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)", KEY], check=True)
    assert watch.seen
    (tmp_path / "log").write_bytes(
        b"Authorization: Basic " + base64.b64encode(b"api:" + KEY.encode())
    )
    assert files_with_the_key(tmp_path) == [tmp_path / "log"]
