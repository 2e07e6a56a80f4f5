"""W&B's client as segray uses it: silent, bounded in time, and never asking for a key."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:  # the client is slow to import, and absent is a case to survive
    import wandb

    from segray.tracking import Mode

_log = logging.getLogger("segray")
_T = TypeVar("_T")
Online = Literal["online", "offline"]

INIT_SECONDS = 20.0  # for a run to start, and for any later call but the last
FINISH_SECONDS = 60.0  # for what is left to upload; the rest stays on disk for `segray sync`
GRACE_SECONDS = 10.0  # the client's own limits come first: they leave it in order
ASK_SECONDS = 4  # for the server to say whose key it is, once the client runs
SERVICE = "WANDB_SERVICE"  # where the client's service process answers: children use it as well
GET_A_KEY = "`wandb login` or WANDB_API_KEY gives one, WANDB_BASE_URL names another server"


@dataclass(frozen=True)
class Readiness:
    """What tracking would do now: the mode that a run starts in, and a line for a person."""

    mode: Literal["online", "offline", "disabled"]
    says: str


def check(mode: Mode, *, ask: bool = True) -> Readiness:
    """What a run started in `mode` would do, found out in about 5 seconds; nothing is raised.

    `ask=False` stays off the network: a key that is known is then taken for a good one.
    """
    if mode == "disabled":
        return Readiness("disabled", "disabled")
    with for_a_moment():
        return _check(mode, ask)


def _check(mode: Mode, ask: bool) -> Readiness:
    try:
        possible, why = within(INIT_SECONDS, lambda: ways(mode))
        if "online" not in possible:
            fallback = possible[0] if possible else "disabled"
            return Readiness(fallback, f"{fallback}: {why}")
        server = base_url()
    except (Exception, SystemExit) as error:
        return Readiness("disabled", f"disabled: W&B's client does not start: {told(error)}")
    if not ask:
        return Readiness("online", f"online, {server}, if it can be reached")
    try:
        user, _ = ask_server()
    except (PermissionError, ConnectionError) as error:
        return Readiness("offline", f"offline: {error}")
    return Readiness("online", f"online, {server} as {user}")


def ways(mode: Mode) -> tuple[list[Online], str]:
    """The modes for a run to try, the best first, and why online is not among them.

    None at all: tracking is switched off.
    """
    # Read at import. The client's reports about itself would go to W&B even from an offline run,
    # be printed when they cannot, and hold Python back at exit (30 s, measured).
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    found = wandb.setup(settings()).settings  # environment and W&B's settings file
    if mode == "auto" and found.mode == "disabled":
        return [], "WANDB_MODE says so"
    if mode == "offline":
        return ["offline"], "tracking.wandb.mode says so"
    if mode == "auto" and found.mode in ("offline", "dryrun"):
        return ["offline"], "WANDB_MODE says so"
    # Never init online without a key: on a terminal the client would ask for one, and wait.
    if not _key_known(found):
        return ["offline"], f"no key for {found.base_url} is known; {GET_A_KEY}"
    return ["online", "offline"], ""


def base_url() -> str:
    """The server's address, from the environment or W&B's settings file."""
    import wandb

    return str(wandb.setup(settings()).settings.base_url)


def ask_server() -> tuple[str, str]:
    """Whose key it is: the user and the entity that runs go to by default.

    Raises PermissionError where the server refuses the key, ConnectionError where it does not
    answer within ASK_SECONDS, or with an error.
    """

    def ask() -> tuple[str, str]:
        import wandb

        viewer = wandb.Api(timeout=ASK_SECONDS).viewer
        return str(viewer.username), str(viewer.entity)

    with for_a_moment():
        server = base_url()
        try:
            return within(INIT_SECONDS, ask)
        except (Exception, SystemExit) as error:
            status = _status(error)
            if status in (401, 403) or (status is None and _malformed(error)):
                raise PermissionError(
                    f"{server} refuses the key that is known here ({told(error)}); {GET_A_KEY}"
                ) from None
            if status is not None:
                raise ConnectionError(f"{server} answers with {status}: {told(error)}") from None
            raise ConnectionError(f"{server} did not answer within {ASK_SECONDS} s") from None


def ask_run(entity: str, project: str, run_id: str) -> Mapping[str, Any] | None:
    """The summary that the server has of a run; None where it has no such run.

    Raises ConnectionError where it does not say within ASK_SECONDS.
    """

    def ask() -> Mapping[str, Any] | None:
        import wandb
        from wandb.apis.public.runs import RunNotFoundError
        from wandb.errors import CommError

        try:
            api = wandb.Api(overrides={"entity": entity}, timeout=ASK_SECONDS)
            run = api.run(f"{entity}/{project}/{run_id}")
        except CommError as error:
            if isinstance(error.exc, RunNotFoundError):
                return None
            raise
        return dict(run.summary_metrics)

    before = os.environ.get("WANDB_DIR")
    with for_a_moment(), tempfile.TemporaryDirectory() as scratch:
        os.environ["WANDB_DIR"] = scratch  # the client makes a folder for a run that it only reads
        try:
            return within(INIT_SECONDS, ask)
        except (Exception, SystemExit) as error:
            raise ConnectionError(f"{base_url()} did not say what it has: {told(error)}") from None
        finally:
            del os.environ["WANDB_DIR"]
            if before is not None:
                os.environ["WANDB_DIR"] = before


def within(seconds: float, action: Callable[[], _T]) -> _T:
    """The result of `action`; TimeoutError when it takes longer (it is then left behind)."""
    result: Future[_T] = Future()

    def work() -> None:
        try:
            result.set_result(action())
        except BaseException as error:  # carried to the caller, whatever it is
            result.set_exception(error)

    # Not an executor: that one would wait for a stuck thread when Python exits.
    Thread(target=work, daemon=True, name="segray-tracking").start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError:
        if result.done():
            raise
        raise TimeoutError(f"W&B did not answer within {seconds:g} s") from None


@contextlib.contextmanager
def for_a_moment() -> Iterator[None]:
    """The client leaves nothing behind. What it was before stays: this program may have a run open,
    which a tear-down would finish.
    """
    in_use = SERVICE in os.environ
    try:
        yield
    finally:
        if not in_use:
            tear_down()


def tear_down() -> None:
    """End the client's service process, and with it all that it holds: logs, ids, settings."""
    try:
        import wandb

        within(GRACE_SECONDS, wandb.teardown)
    except (Exception, SystemExit) as error:
        _log.debug("W&B: the client did not end in order: %r", error)


def settings() -> wandb.Settings:
    """Silent, bounded, and without what W&B would collect about the host, the code and the user."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        login_timeout=INIT_SECONDS,
        x_service_wait=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        allow_offline_artifacts=False,  # would put tables outside the folder, unsynced
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        use_dot_wandb=False,
        host="segray",
        program="segray",
        x_disable_meta=True,
        x_save_requirements=False,
        stop_fn=_stop_pressed,
    )


def told(error: BaseException) -> str:
    """An error of the client's in one line, without the key."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "(key)") if key else text


def _stop_pressed() -> None:
    """W&B's stop button would interrupt the main thread, which is the worker, not the trial."""
    _log.warning("W&B: a stop was asked for in the browser; segray ends trials itself and goes on.")


def _key_known(found: wandb.Settings) -> bool:
    if found.api_key or found.identity_token_file or os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        login = netrc.netrc(path).authenticators(urlsplit(found.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return False
    return login is not None and bool(login[2])


def _status(error: BaseException) -> int | None:
    """The HTTP status of the server's answer, if there was one."""
    answer = getattr(error.__cause__ or error, "response", None)
    return None if answer is None else int(answer.http_status)


def _malformed(error: BaseException) -> bool:
    """Whether it was the key, at which the client itself took offence."""
    from wandb.errors import AuthenticationError

    return isinstance(error, AuthenticationError) and error.__cause__ is None
