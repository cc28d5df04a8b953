"""`/livez`, `/readyz`, `/metrics`: for load balancers and Prometheus, without a token."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from admin_api.answers import problems
from admin_api.context import Context, ReadinessCheck
from admin_api.problems import RETRY_AFTER_S, problem_response
from ota_hook.errors import OtaHookError

router = APIRouter(tags=["health"])

CHECK_S: Final = 2.0
"""A readiness check that takes longer counts as failed."""


@router.get("/livez", summary="Whether this process runs")
async def read_liveness() -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz", summary="Whether checks are answered", responses={503: problems()[503]})
async def read_readiness(context: Context) -> Response:
    found = await asyncio.gather(*(_problems_of(check) for check in context.readiness_checks))
    faults = [fault for faults in found for fault in faults]
    if not faults:
        return Response(_ready(len(context.catalogue.current.refused)), media_type="application/json")
    return problem_response(
        HTTPStatus.SERVICE_UNAVAILABLE,
        " ".join(faults),
        errors=[{"field": "", "detail": fault} for fault in faults],
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def _ready(refused: int) -> bytes:
    """Documents that can't be used are information: checks are answered without them."""
    return orjson.dumps({"status": "ok"} | ({"refused_documents": refused} if refused else {}))


async def _problems_of(check: ReadinessCheck) -> list[str]:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check()
    except TimeoutError:
        return [f"A readiness check took longer than {CHECK_S:g} s."]
    except OtaHookError as exc:
        return [exc.detail]


@router.get("/metrics", summary="What was counted, for Prometheus")
async def read_metrics(context: Context, request: Request) -> Response:
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(context.metrics), headers={"Content-Type": content_type})
