"""What is served: Azure's ``/info`` and OpenAI's ``/v1/models``; and what is not."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from server.dependencies import ServiceOf, require_api_key
from server.errors import ApiError
from server.schemas import ModelCard, ModelInfo, ModelList

PUBLISHED = 1716249600  # 21 May 2024, the day Phi-3-vision was announced

router = APIRouter(tags=["models"], dependencies=[Depends(require_api_key)])


@router.get("/info")
async def info(service: ServiceOf) -> ModelInfo:
    """The deployed model, as Azure's SDKs ask for it."""
    described = service.info
    return ModelInfo(model_name=described.name, model_provider_name=described.provider)


@router.get("/v1/models")
async def models(service: ServiceOf) -> ModelList:
    """The one model served."""
    described = service.info
    card = ModelCard(id=described.name, created=PUBLISHED, owned_by=described.provider)
    return ModelList(data=[card])


@router.get("/v1/models/{model_id:path}")
async def model(model_id: str, service: ServiceOf) -> ModelCard:
    """The model of that name; 404 for any other."""
    (card,) = (await models(service)).data
    if model_id != card.id:
        raise ApiError(
            404,
            "model_not_found",
            f"there is no model {model_id!r} here; this server has {card.id!r}",
        )
    return card


@router.post("/embeddings", include_in_schema=False)
@router.post("/images/embeddings", include_in_schema=False)
async def embeddings() -> None:
    """Azure's own words to its embeddings clients."""
    raise ApiError(404, "not_found", "Modality not supported by the model")
