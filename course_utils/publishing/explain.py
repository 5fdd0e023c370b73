"""What went wrong between here and the hub, in words that say what to do.

No message holds a token.
"""

import contextlib
import errno
import logging
import re
from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
)

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}")  # shorter than real ones
SETTINGS = "https://huggingface.co/settings/tokens"


def ask(
    call: Callable[[], Any], repo_id: str, secret: str | None = None, resume: str = ""
) -> Any:
    """`call()`, with the hub client's errors turned into ones that say what to do.

    secret: a token that must not appear, however it looks. resume: how to go on after a
    broken connection.
    Raises: PermissionError (401, 403), FileNotFoundError (404), ConnectionError (no
    network, 429, 5xx, a cut), OSError (disk); anything else as it was.
    """
    try:
        with _redacted_logs(secret):
            return call()
    except Exception as error:
        said = explained(error, repo_id, resume)
        if said is None:
            raise
    # Raised outside the handler: the client's frames, whose variables hold the token,
    # are no part of this error, and this frame forgets it.
    kind, text = said[0], without_tokens(said[1], secret)
    del said, secret
    raise kind(text)


@contextlib.contextmanager
def _redacted_logs(secret):
    """No log record in this block holds the secret, whatever the hub sends back."""
    make = logging.getLogRecordFactory()

    def redacted(*args, **kwargs):
        record = make(*args, **kwargs)
        if secret and secret in (text := record.getMessage()):
            record.msg, record.args = without_tokens(text, secret), ()
        return record

    logging.setLogRecordFactory(redacted)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def without_tokens(text: str, secret: str | None = None) -> str:
    if secret:
        text = text.replace(secret, "<token>")
    return TOKEN.sub("<token>", text)


def explained(
    error: BaseException, repo_id: str, resume: str = ""
) -> tuple[type, str] | None:
    """(type of error, words), or None if this is not about the hub, net or disk."""
    chain = _chain(error)
    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return ConnectionError, (
                "Offline: HF_HUB_OFFLINE is set, so nothing was sent. Unset it and "
                "start Python again."
            )
        if isinstance(link, GatedRepoError):
            return PermissionError, (
                f"{repo_id} is gated: accept its licence on its page on the hub, and "
                "set HF_TOKEN to a token of that account."
            )
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _by_status(link, repo_id, resume)
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return OSError, (
                f"The disk is full ({link.filename or 'no file named'}). Free some "
                f"space and call this again. {resume}".rstrip()
            )
    if any(_is_network(link) for link in chain):
        return ConnectionError, (
            f"The connection to the hub failed ({type(chain[-1]).__name__}: "
            f"{chain[-1]}). Check the network. {resume}".rstrip()
        )
    return None


def _by_status(error, repo_id, resume):
    status = error.response.status_code
    words = error.server_message or ""
    if words:
        words = f" The hub says: {words.rstrip('.')}."
    if status == 401:
        return PermissionError, (
            f"The hub does not accept the token (401), or {repo_id} is not there for "
            f"you.{words} Make a token with write access at {SETTINGS} and set "
            "HF_TOKEN."
        )
    if status == 403:
        return PermissionError, (
            f"The token may not write to {repo_id} (403).{words} The name must begin "
            "with your own user name or an organisation you may write to, and the "
            f"token needs write access to it: {SETTINGS}."
        )
    if status == 404:
        return FileNotFoundError, f"{repo_id} is not on the hub (404).{words}"
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        when = f"in {wait} s" if wait else "in a few minutes"
        return ConnectionError, (
            f"The hub asks to slow down (429).{words} Call this again {when}. {resume}"
        ).rstrip()
    if status >= 500:
        return ConnectionError, (
            f"The hub has an error of its own ({status}).{words} Call this again "
            f"later. {resume}".rstrip()
        )
    return ConnectionError, f"The hub refused {repo_id} ({status}).{words}"


def _chain(error):
    """The error and what caused it, the outermost first."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _is_network(error):
    # huggingface_hub has changed its HTTP library twice; their errors' names stay.
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(
        names & {"TransportError", "RequestException"}
    )
