"""llamactl serve: answer OpenAI's completions and chat completions, with a page to write with or to chat."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.options import MODEL_HELP, DeviceName
from llamactl.cli.preconditions import import_torch, require_run

if TYPE_CHECKING:
    from socket import socket

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
HOST_HELP = "Address to listen on; any but this machine's own needs the token."
TOKEN_HELP = "Token that requests must send: Authorization: Bearer TOKEN."


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=MODEL_HELP,
            show_default="the newest run",
            autocompletion=completion.checkpoints,
        ),
    ] = "",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help=HOST_HELP)] = "127.0.0.1",
    token: Annotated[str, typer.Option(help=TOKEN_HELP, show_default="drawn, where one is needed")] = "",
    device: DeviceName = "auto",
) -> None:
    """Serve a model: OpenAI's completions and chat completions, and a page to write with or to chat."""
    require_run(model)
    import secrets

    from llamactl import install_command
    from llamactl.cli.ui.console import progress
    from llamactl.errors import UserError

    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        what = "There is no server."
        raise UserError(what, f"{error.name} is not installed.", f"Install it: {install_command('serve')}") from error
    import_torch()
    from llamactl.checkpoint.select import locate_checkpoint
    from llamactl.cli.decoding import show_native_step
    from llamactl.hardware.device import choose_device
    from llamactl.serving.app import Server
    from llamactl.serving.scheduler import Scheduler

    local = host in LOOPBACK
    shown = token or ("" if local else secrets.token_urlsafe(16))
    folder = locate_checkpoint(model)
    target = choose_device(device)
    show_native_step(target)
    scheduler = Scheduler(target)
    scheduler.load(folder)  # a model that can't be used is told before anybody asks
    server = Server(list_models(folder), scheduler, LOOPBACK if local else (), shown)
    listener = open_port(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    progress.print(describe_server(address, next(iter(server.models)), shown))
    config = uvicorn.Config(server.app(), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        scheduler.close()


def open_port(host: str, port: int) -> "socket":
    """Listen on a port, before anything is announced; raises UsageError for one that is taken, or a host that is not here."""
    from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket

    from llamactl.errors import UsageError

    listener = socket(AF_INET6 if ":" in host else AF_INET)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise UsageError(f"{host}:{port} can't be used.", f"{error.strerror or error}.", "Take another: --port 0") from error
    return listener


def describe_server(address: str, name: str, token: str) -> str:
    """Say where the server is, and what requests must show."""
    lines = [f"{name} at {address}/ and, for OpenAI's clients, at {address}/v1. Ctrl-C stops it."]
    return "\n".join(lines + ([f"Requests need this token: {token}"] if token else []))


def list_models(folder: Path) -> dict[str, Path]:
    """Name the model in a folder, and the other checkpoints of its run: they are answered for by RUN@STEP."""
    from llamactl.checkpoint.format import is_foreign, read_state
    from llamactl.checkpoint.select import describe_model
    from llamactl.runs.run_dir import run_of

    name = describe_model(folder, read_state(folder)).partition(" at step ")[0]
    run = run_of(folder)
    if run is None or is_foreign(folder):
        return {name: folder}
    return {name: folder} | {f"{name}@{step}": run.checkpoint(step) for step in run.steps()}
