"""Places that are URLs of an object store rather than paths."""

from __future__ import annotations

import re

SCHEMES = ("s3://", "gs://")


def is_remote(place: str) -> bool:
    """Whether `place` names an object store rather than a path."""
    return place.startswith(SCHEMES)


def wrong_url(place: str) -> str:
    """What is wrong with a place that is written as a URL; empty for a good one and for a path."""
    if is_remote(place):
        good = bool(re.fullmatch(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/[^?#]*)?", place))
    else:  # s3:/bucket is what a path made of a URL looks like
        good = not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|(s3|gs):", place)
    if good:
        return ""
    return (
        "expected s3://bucket/folder or gs://bucket/folder (region and endpoint come from AWS's "
        "own variables, such as AWS_ENDPOINT_URL), or the path of a folder"
    )
