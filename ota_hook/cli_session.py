"""What every command on the catalogue shares: where the service is, the token, how it prints and how it ends.

Owns the options `--api`, `--config`, `--data-dir` and `--json`. It must not know any resource of the API.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Concatenate, Final, NoReturn, cast

import typer

from ota_hook.errors import ConfigurationError, InputError, NotFound
from ota_hook.settings import Listen, Settings, load_settings
from ota_hook.terminal import Column, Terminal

if TYPE_CHECKING:  # httpx takes longer to import than most commands run, and the roles' commands never need it
    from ota_hook.api_client import ApiClient

Document = dict[str, Any]

TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a name
ROWS_SHOWN: Final = 1000
"""Rows of a table that people get without asking for more."""
CHUNK_BYTES: Final = 64 * 1024
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
_ANY_HOSTS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a service is reached from here

_CONNECTION_OPTIONS: Final[dict[str, tuple[Any, object]]] = {
    "as_json": (Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")], False),
    "api": (
        Annotated[
            str | None,
            typer.Option(
                "--api", metavar="URL", help="The admin API [http:// + OTA_HOOK_ADMIN_LISTEN].", show_default=False
            ),
        ],
        None,
    ),
    "data_dir": (
        Annotated[
            Path | None,
            typer.Option(
                "--data-dir",
                metavar="PATH",
                help="Where the service keeps its token, if OTA_HOOK_ADMIN_TOKEN is unset [./ota-hook-data].",
                show_default=False,
            ),
        ],
        None,
    ),
    "config": (
        Annotated[
            Path | None, typer.Option("--config", metavar="FILE", help="A TOML file with settings.", show_default=False)
        ],
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Session:
    """One command at work: the API that it asks and the terminal that it answers on."""

    api: ApiClient
    terminal: Terminal

    @staticmethod
    def path(*segments: str) -> str:
        """`("devices", "a b")` → `/devices/a%20b`."""
        from ota_hook.api_client import api_path  # noqa: PLC0415 - see above

        return api_path(*segments)

    def answer(self, document: Document, text: str) -> None:
        """What was done, in a line."""
        if self.terminal.as_json:
            self.terminal.write_json(document)
        else:
            self.terminal.say(text)

    def show(self, document: Document, facts: Iterable[tuple[str, str]]) -> None:
        """One document, for people as names and values."""
        if self.terminal.as_json:
            self.terminal.write_json(document)
        else:
            self.terminal.facts(facts)

    def show_list(
        self,
        entries: Iterator[Document],
        columns: Sequence[Column],
        row: Callable[[Document], Sequence[str]],
        *,
        limit: int | None,
    ) -> None:
        """Entries as they come, `limit` at most (0: all; None: as many as people read, or all as JSON)."""
        most = limit if limit is not None else (0 if self.terminal.as_json else ROWS_SHOWN)
        shown = itertools.islice(entries, most) if most else entries
        if self.terminal.as_json:
            self.terminal.write_json_list(shown)
        else:
            self.terminal.table(columns, map(row, shown))
        if most and next(entries, None) is not None:
            self.terminal.note(f"Only the first {most} are shown; --limit 0 shows all.")

    def fail(self) -> NoReturn:
        """End with status 1; what went wrong has been said."""
        raise typer.Exit(EXIT_FAILED)


def require_type(session: Session, key: str | None) -> None:
    """NotFound where there is no such device type: a list that is empty for a slip of the keyboard says nothing."""
    if key is not None:
        session.api.get(session.path("device-types", key))


def put_or_change(api: ApiClient, path: str, new: Document, changes: Document) -> tuple[Document, str]:
    """Create `new`, or change only what is given of what is there; returns it and what was done, in a word or two."""
    try:
        before = api.get(path)
    except NotFound:
        return api.put(path, new, only_new=True)[0], "created"
    after = api.patch(path, changes) if changes else before
    said_before, said_after = ({**document, "revision": None} for document in (before, after))
    return after, "as it was" if said_after == said_before else "changed"


def catalogue_command(command: Callable[Concatenate[Session, ...], None]) -> Callable[..., None]:
    """Give a command its session, and its command line the options of one.

    Ctrl-C ends it with status 130, a reader that went away (`| head`) with 141, both without a traceback.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _CONNECTION_OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:  # noqa: ANN401 - as typer read them by the signature below
        connection = {name: arguments.pop(name) for name in _CONNECTION_OPTIONS}
        with _quiet_ends(), open_session(**connection) as session:
            command(session, **arguments)

    # typer reads both; without the first it would see the session as an argument of the command line.
    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return run


@contextmanager
def _quiet_ends() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None


@contextmanager
def open_session(*, api: str | None, config: Path | None, data_dir: Path | None, as_json: bool) -> Iterator[Session]:
    """Read the settings, find the token, and hold a connection while the context lasts. Nothing is asked yet.

    Raises ConfigurationError.
    """
    settings = load_settings(flags={"data_dir": data_dir}, environ=os.environ, config=config)
    url = api or f"http://{_reachable(settings.admin_listen)}"
    token, source = _find_token(settings)

    from ota_hook.api_client import ApiClient  # noqa: PLC0415 - see above

    with ApiClient(url, token, token_source=source) as client:
        yield Session(client, Terminal(as_json=as_json))


def _reachable(listen: Listen) -> Listen:
    """Where a service that listens there is reached from the same machine."""
    if listen.port == 0:
        raise ConfigurationError("The admin API listens on a port that the system chose.", mend="Give it with --api.")
    return Listen(_ANY_HOSTS.get(listen.host, listen.host), listen.port)


def _find_token(settings: Settings) -> tuple[str, str]:
    """The admin token and where it comes from. ConfigurationError where there is none."""
    if settings.admin_token is not None:
        token, source = settings.admin_token.get_secret_value(), "OTA_HOOK_ADMIN_TOKEN"
    else:
        path = settings.data_dir / TOKEN_FILE
        token, source = _read_token(path), str(path)
    if not token or not all("!" <= c <= "~" for c in token):
        raise ConfigurationError(f"What {source} holds is no admin token.")
    return token, source


def _read_token(path: Path) -> str:
    mend = "Run this where the service keeps its data (--data-dir), or set OTA_HOOK_ADMIN_TOKEN."
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError as exc:
        raise ConfigurationError(
            f"There is no admin token: OTA_HOOK_ADMIN_TOKEN is unset and there is no file {path}.", mend=mend
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigurationError(f"The admin token in {path} can't be read: {reason}.", mend=mend) from exc


def open_input(path: Path) -> tuple[Iterator[bytes], int | None]:
    """The chunks of a file, or of standard input for `-`, and how many bytes there are where that is known.

    The file is opened at once (InputError where it can't be) and closed when its last chunk was read.
    """
    if str(path) == "-":
        stdin = cast("io.BufferedReader", sys.stdin.buffer)
        return iter(functools.partial(stdin.read1, CHUNK_BYTES), b""), None  # a line is sent when it is there
    try:
        stream = path.open("rb")
        size_bytes = path.stat().st_size if path.is_file() else None
    except OSError as exc:
        raise InputError(f"The file {path} can't be read: {exc.strerror}.") from exc
    return _chunks(stream), size_bytes


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
