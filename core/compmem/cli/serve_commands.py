"""`compmem serve` and `compmem mcp`: an index for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from compmem.cli.app import app, chat_arguments, chat_model, without_none
from compmem.cli.query_commands import AllowDownload, BackboneBase, BaseUrl, Device, IndexPath, KeyOption, open_index
from compmem.config import RecallConfig

Model = Annotated[str | None, typer.Option(help="Chat model that writes the answers; its name at the endpoint.")]
Cite = Annotated[bool, typer.Option("--cite", help="Let the chat model cite its sources, as in [1].")]
AtOnce = Annotated[int | None, typer.Option(help="Questions that a process answers at once. Default: one per core.")]
Waiting = Annotated[int, typer.Option(help="Questions that may wait in a process; more are refused.")]
WaitSeconds = Annotated[float, typer.Option(help="Longest wait of a question; then it is refused.")]
AnswerSeconds = Annotated[float, typer.Option(help="Seconds after which a question is answered with what is known.")]


@app.command()
def serve(
    index: IndexPath,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines can reach it only if tokens are set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON list of tokens, each with name, metadata and write; or one token. Default: COMPMEM_TOKENS.",
        ),
    ] = None,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key_env: KeyOption = None,
    cite: Cite = False,
    processes: Annotated[int, typer.Option(help="Worker processes; each loads the models.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Serve on Ray Serve: on a cluster at auto or HOST:PORT, or on this machine alone.",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas on Ray Serve, each with the models and a CPU. Default: 2.")
    ] = None,
    shard_actors: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Open the shards of the index in so many actors on this machine, at most one a shard. Replicas ask "
            "these, may be on any machine, and add and delete nothing.",
        ),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only",
            help="Refuse to add and delete documents. Then replicas may be on all machines of a cluster, "
            "each with a copy of the index.",
        ),
    ] = False,
    at_once: AtOnce = None,
    waiting: Waiting = 128,
    wait_seconds: WaitSeconds = 30.0,
    answer_seconds: AnswerSeconds = 60.0,
    body_bytes: Annotated[int, typer.Option(help="Most bytes of a request.")] = 8 << 20,
    device: Device = None,
    backbone_base: BackboneBase = None,
    allow_download: AllowDownload = False,
) -> None:
    """Serve an index over HTTP: /v1/chat/completions as in the OpenAI API, /recall, /answer, /documents, /health."""
    from compmem.serving import run

    chat = chat_arguments(RecallConfig(cite=cite), model, base_url, api_key_env)
    limits = without_none(
        at_once=at_once, waiting=waiting, wait_seconds=wait_seconds, answer_seconds=answer_seconds,
        body_bytes=body_bytes,
    )  # fmt: skip
    settings = run.Settings(
        index=str(index), tokens=None if tokens is None else str(tokens), chat=chat, cite=cite, device=device,
        backbone_base=backbone_base, allow_download=allow_download, read_only=read_only, limits=limits,
        processes=_processes(ray, processes, replicas, shard_actors),
    )  # fmt: skip
    if ray is None:
        run.serve(settings, host, port)
    else:
        from compmem.serving import on_ray

        on_ray.serve(settings, host, port, ray, shard_actors)


def _processes(ray: str | None, processes: int, replicas: int | None, shard_actors: int | None) -> int:
    """How many processes, or replicas on Ray Serve, answer."""
    if ray is None and replicas is not None:
        raise typer.BadParameter("--replicas needs --ray")
    if ray is None and shard_actors is not None:
        raise typer.BadParameter("--shard-actors needs --ray")
    if ray is not None and processes != 1:
        raise typer.BadParameter("give --processes or --ray with --replicas, not both")
    return processes if ray is None else 2 if replicas is None else replicas


@app.command()
def mcp(
    index: IndexPath,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer no tool that changes the index.")] = False,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key_env: KeyOption = None,
    cite: Cite = False,
    at_once: AtOnce = None,
    waiting: Waiting = 128,
    wait_seconds: WaitSeconds = 30.0,
    answer_seconds: AnswerSeconds = 60.0,
    device: Device = None,
    backbone_base: BackboneBase = None,
    allow_download: AllowDownload = False,
) -> None:
    """Serve an index to an agent by the Model Context Protocol, on standard input and output."""
    from compmem.serving.limits import Limits
    from compmem.serving.tools import create_tools

    config = RecallConfig(cite=cite)
    chat = chat_model(config, model, base_url, api_key_env)
    limits = Limits(
        **without_none(at_once=at_once, waiting=waiting, wait_seconds=wait_seconds, answer_seconds=answer_seconds)
    )
    with open_index(index, device, backbone_base, allow_download) as opened:
        create_tools(opened, config=config, limits=limits, read_only=read_only, chat=chat).run("stdio")
