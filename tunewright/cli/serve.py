"""`tunewright serve`: the OpenAI protocol over the runs and jobs of this machine."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunewright.cli.runs import RUNS, require_variable
from tunewright.core.errors import ConfigError, MissingExtra

HOME = Path("tunewright-server")
GRACE_SECONDS = 15  # for requests that are being answered, before the server ends


def serve(
    models: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A base model, as in a config; repeat for several.")
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder for jobs, files and tokens.")] = HOME,
    runs: Annotated[Path, typer.Option(help="Folder whose runs are served, too, as run:NAME.")] = RUNS,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than this machine's needs a proxy with TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which clients may reach the server; repeat for several.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of the answers; with --engine, the precision whose rounding is tolerated."),
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, max=512, help="Requests answered at the same time.")] = 32,
    cache_gb: Annotated[float, typer.Option(min=0.01, help="Memory for the keys and values of requests, in GB.")] = 2.0,
    quota_gb: Annotated[
        float, typer.Option(min=0.01, help="Disk for the files, chats and run folders of a tenant, in GB.")
    ] = 50.0,
    engine: Annotated[
        str, typer.Option(metavar="URL", help="Let vLLM at this address answer; finished adapters are published there.")
    ] = "",
    engine_key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with its API key.")
    ] = "",
    jobs_at_once: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; default: one, or one for each GPU.")
    ] = None,
    add_tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a token for another tenant, print it, and exit.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check database, files and runs of the home against their hashes, and exit.")
    ] = False,
    back_up: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy the home, even while it is served, and exit.")
    ] = None,
) -> None:
    """Serve models and fine-tuning jobs behind the OpenAI protocol."""
    try:
        import uvicorn

        from tunewright.server.app import create_app
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "`tunewright serve`", "pip install 'tunewright[serve]'") from None
    from tunewright.server import care
    from tunewright.server.access import DEFAULT, Tokens
    from tunewright.server.engine.requests import Limits
    from tunewright.server.engine.vllm import Remote
    from tunewright.server.service import Settings, open_service

    if add_tenant is not None:
        typer.echo(Tokens(home / "tokens").add(add_tenant))
        return
    if check or back_up is not None:
        typer.echo(care.checked(home) if back_up is None else care.backed_up(home, back_up))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings(
        home=home.absolute(),
        models=tuple(models or ["smollm2-135m"]),
        runs=runs.absolute(),
        dtype=dtype,
        limits=Limits(rows=rows, cache_bytes=int(cache_gb * 1e9)),
        hosts=tuple(allow_host or ()),
        quota=int(quota_gb * 1e9),
        jobs_at_once=jobs_at_once,
        engine=Remote(engine, engine_key_env, "float32" if dtype == "float32" else "bfloat16") if engine else None,
    )
    if engine and len(settings.models) > 1:
        message = "--engine works with a single --model."
        raise ConfigError("CONFIG_CONFLICT", message, where="--engine", fix="start one server for each.")
    require_variable(engine_key_env, "--engine-key-env")
    typer.echo(f"loading {', '.join(settings.models)} ...", err=True)
    service = open_service(settings)
    try:
        config = uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = _announced()(config, service.tokens.token_of(DEFAULT))
        server.run()
    except KeyboardInterrupt:  # uvicorn repeats the signal that it has obeyed
        pass
    finally:
        service.close()


def _announced() -> type:
    import uvicorn

    class Announced(uvicorn.Server):
        """Prints where it listens, once it does."""

        def __init__(self, config: uvicorn.Config, token: str) -> None:
            super().__init__(config)
            self._token = token

        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.servers:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
                url = f"http://{shown}:{port}"
                typer.echo(f"base_url   {url}/v1\napi_key    {self._token}\ndashboard  {url}/?token={self._token}")
                sys.stdout.flush()

    return Announced
