"""The console command `sagan`: what each subcommand takes; what it does lives in the packages.

Commands import what they need when they run, so that an image with the API alone needs no torch to start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec

import typer
from typer.core import TyperGroup

from cli import images, keys, measuring, operating, service, training
from cli.common import fail, refuse
from cli.streams import forgiving

P = ParamSpec("P")

_ABOUT: Final = (
    "Images of a class from a self-attention GAN: serve them, train on your own, look inside, measure."
)

# Each command, and the extra of this package that brings what it imports.
COMMANDS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("all", service.serve),
    ("api", service.api),
    ("worker", service.worker),
    ("train", training.train),
    ("worker", images.sample),
    ("worker", images.sheet),
    ("worker", images.morph),
    ("worker", images.attention),
    ("worker", images.reproduce),
    ("train", images.progress),
    ("worker", service.models),
    ("train", measuring.evaluate),
    ("train", measuring.neighbours),
    ("train", measuring.experiment),
    ("train", training.choose),
    ("train", training.average),
    ("bench", service.bench),
    ("api", operating.doctor),
)


class _Commands(TyperGroup):
    """Its usage errors are one sentence, as all others are."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        try:
            code = super().main(args, *more, **{**named, "standalone_mode": False})
        except OSError as error:  # of a file that nobody foresaw
            refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
            raise SystemExit(2) from None
        except UnicodeEncodeError as error:
            refuse(
                f"A name has letters that this machine's locale, {error.encoding}, does not have ({error})."
            )
            raise SystemExit(2) from None
        except Exception as error:
            # the classes of typer's errors have no public names in all its versions
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ != "NoArgsIsHelpError":  # that one has printed the help
                context = getattr(error, "ctx", None)
                said = " ".join(error.format_message().split()).rstrip(".")
                refuse(said + (f". `{context.command_path} --help` tells more." if context else "."))
            raise SystemExit(2) from None
        raise SystemExit(code if isinstance(code, int) else 0)


class _App(typer.Typer):
    """As a process: what it cannot say ends nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with forgiving():
            return super().__call__(*args, **kwargs)


app = _App(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, help=_ABOUT)
data = typer.Typer(no_args_is_help=True, help="Labelled images, packed once into one file.")
app.add_typer(data, name="data")
queue = typer.Typer(no_args_is_help=True, help="Everybody's jobs, in Redis: list, inspect, cancel.")
app.add_typer(queue, name="queue")
api_keys = typer.Typer(no_args_is_help=True, help="Keys of a service: who may ask for what, and how much.")
app.add_typer(api_keys, name="keys")


def _with(extra: str, command: Callable[P, None]) -> Callable[P, None]:
    """The command; where a package is missing, one sentence says which extra brings it."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ModuleNotFoundError as error:
            fail(
                f"`sagan {command.__name__}` needs the package {error.name}, which is not installed here: "
                f"pip install 'sagan-service[{extra}]'"
            )

    return run


for _extra, _command in COMMANDS:
    app.command()(_with(_extra, _command))
data.command()(_with("train", training.pack))
queue.command("list")(_with("api", operating.list_jobs))
queue.command()(_with("api", operating.inspect))
queue.command()(_with("api", operating.cancel))
for _name, _command in (("create", keys.create), ("list", keys.list_keys), ("revoke", keys.revoke)):
    api_keys.command(_name)(_with("api", _command))
