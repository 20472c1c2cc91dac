"""The routes of a server: score, recommend, health, metrics, the page."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse

from cora.data.problems import clipped
from cora.serving.answers import Answer, Answerer, Question, UnknownItem
from cora.serving.batching import Batcher, Limits, Refused
from cora.serving.limits import Limited
from cora.serving.metrics import Metrics
from cora.serving.requests import Health, Problem, Recommendations, RecommendRequest, ScoreRequest, Scores

_PAGE = Path(__file__).parent / "page"
_LONGEST_PROBLEM = 300
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no JSON"},
    404: {"model": Problem, "description": "No such item"},
    408: {"model": Problem, "description": "The body came too slowly"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Problem, "description": "The body is not what is described here, or the data have no such ids"},
    503: {
        "model": Problem,
        "description": "Too much waits, or the deadline has passed",
        "headers": {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}},
    },
}


def serve(run: str | Path, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
    """Serves a finished run over HTTP until SIGTERM or Ctrl-C; requests that wait then are answered first.

    port: 0 for any that is free; which, is printed. Raises FileNotFoundError unless a finished run is there, OSError
    for an address that cannot be had.
    """
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    with listening:
        app = create_app(Answerer(run), limits or Limits())
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {run} at http://{shown}:{listening.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            print("stopped; every request that had come was answered")


def create_app(answerer: Answerer, limits: Limits) -> FastAPI:
    """The app of one run. What is asked is answered by its one batcher, so by one thread."""
    batcher: Batcher[Question, Answer] = Batcher(
        answerer.answers, lambda one: one.prompts, limits, lambda batch: metrics.batch(batch)
    )
    metrics = Metrics(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="CoRA", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Scores and recommendations of one run. Requests that come together are one batch.",
    )  # fmt: skip
    app.add_middleware(Limited, observe=metrics.answered)

    async def ask(question: Question) -> Answer:
        if not question.adapted and not answerer.has_language_model:
            raise HTTPException(422, f"delta: a run of {answerer.method} has no language model to be alone")
        try:
            return await batcher.ask(question)
        except Refused as refused:
            metrics.refused(refused.reason)
            detail = {"full": "too many requests wait", "closing": "the server is closing"}.get(
                refused.reason, f"there was no answer within {limits.deadline:g} seconds"
            )
            raise HTTPException(503, detail, {"Retry-After": str(refused.retry_after)}) from None

    @app.post("/score", responses=_REFUSED)
    async def score(request: ScoreRequest) -> Scores:
        """Scores of items for a user, in their order."""
        try:
            question = Question(answerer.user_id(request.user), answerer.item_ids(request.items), adapted=request.delta)
        except UnknownItem as error:
            raise HTTPException(404, str(error.args[0])) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return Scores.of(request, await ask(question))

    @app.post("/recommend", responses={code: one for code, one in _REFUSED.items() if code != 404})
    async def recommend(request: RecommendRequest) -> Recommendations:
        """The best items for a user among those that they have not rated."""
        if request.candidates < request.top:
            got = f"{request.top} and {request.candidates}"
            raise HTTPException(422, f"top, candidates: expected top <= candidates, got {got}")
        try:
            user = answerer.user_id(request.user)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        asked = Question(user, top=request.top, candidates=request.candidates, adapted=request.delta)
        return Recommendations.of(request, await ask(asked))

    @app.get("/health", responses={503: {"model": Health, "description": "The server is closing"}})
    async def health(response: Response) -> Health:
        """Whether questions are answered."""
        if batcher.closing:
            response.status_code = 503
        status = "closing" if batcher.closing else "ok"
        return Health(status=status, method=answerer.method, waiting=batcher.waiting)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def counted() -> Response:
        """Counts in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, file in (("/", "page.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.get(path, include_in_schema=False)(_sends(_PAGE / file))

    @app.exception_handler(RequestValidationError)
    async def misshaped(request: Request, error: RequestValidationError) -> JSONResponse:
        # Of what came nothing is repeated: it may be anything, NaN and half a character included.
        found = error.errors()[0]
        place = found["loc"][1:] if found["type"] != "json_invalid" else ()
        where = ".".join(str(one) for one in place) or "body"
        return JSONResponse({"detail": clipped(f"{where}: {found['msg']}", _LONGEST_PROBLEM)}, 422)

    return app


def _sends(file: Path) -> Any:
    async def send() -> FileResponse:
        return FileResponse(file)

    return send
