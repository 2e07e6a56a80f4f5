"""Fetching images from an object store: many at once against one at a time.

The store is moto's S3 on loopback behind a proxy that answers late, as a store in the same region
does. Each turn fetches all objects into an empty folder.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import os

from common import arguments, conditions, in_turns, report
from s3_server import Proxy, S3Server

from segray.data import remote


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--bytes", type=int, default=100_000, help="of each")
    parser.add_argument("--latency", type=float, default=20.0, help="ms of each answer")
    asked = parser.parse_args()
    server = S3Server()
    proxy = Proxy(server)
    target = Path(tempfile.mkdtemp())
    try:
        os.environ.update(server.environment(proxy.url))
        client = server.client()
        client.create_bucket(Bucket="bench")
        names = [f"{number:04}.png" for number in range(asked.objects)]
        for name in names:
            client.put_object(Bucket="bench", Key=f"images/{name}", Body=os.urandom(asked.bytes))
        folder = remote.RemoteFolder("s3://bench/images")
        proxy.delay = asked.latency / 1000

        def fetch(at_once: int) -> None:
            remote.AT_ONCE = at_once
            shutil.rmtree(target)
            assert list(folder.download_all(names, target))[-1] == len(names)
            assert all((target / name).stat().st_size == asked.bytes for name in names)

        print(conditions(asked.threads))
        title = f"{asked.objects} objects of {asked.bytes} bytes, {asked.latency:g} ms an answer"
        contenders = {f"{n} at once": lambda n=n: fetch(n) for n in (16, 1, 4, 64)}
        report(title, in_turns(contenders, asked.rounds), "16 at once", units=asked.objects)
    finally:
        proxy.close()
        server.close()
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main()
