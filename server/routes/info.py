"""Information about model and server: Azure's ``/info``, OpenAI's ``/v1/models`` and ``/version``.

Also the error for embeddings.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from server import __version__
from server.errors import ApiError, responses, short_name
from server.http.dependencies import KEY_REQUIRED, PROJECT, ServiceOf, project_name
from server.schemas.responses import ModelCard, ModelInfo, ModelList, Version

PUBLISHED = 1716249600  # 21 May 2024, when Phi-3-vision was announced
AZURE_PREFIXES = (
    "",
    "/models",
)  # endpoints for Azure's SDKs are the root or, with Foundry, /models
OPENAI_PREFIXES = ("/v1", "/openai/v1", "/openai")
NO_EMBEDDINGS = (
    "/embeddings",
    "/images/embeddings",
    "/models/embeddings",
    "/models/images/embeddings",
    "/v1/embeddings",
    "/openai/v1/embeddings",
    "/openai/deployments/{deployment}/embeddings",
)

router = APIRouter(tags=["models"], dependencies=KEY_REQUIRED, responses=responses(401, 403, 503))


async def info(service: ServiceOf) -> ModelInfo:
    """The deployed model, for Azure's SDKs."""
    described = service.info
    return ModelInfo(
        model_name=described.name,
        model_provider_name=described.provider,
        adapter=described.adapter,
    )


async def models(service: ServiceOf) -> ModelList:
    """A list of the one model."""
    described = service.info
    card = ModelCard(
        id=described.name,
        created=PUBLISHED,
        owned_by=described.provider,
        max_model_len=service.max_model_len,
        default_parameters=dict(described.default_parameters),
        adapter=described.adapter,
    )
    return ModelList(data=[card])


@router.get("/version")
async def version() -> Version:
    """The server's version, in vLLM's form."""
    return Version(version=__version__)


async def model(model_id: str, service: ServiceOf) -> ModelCard:
    """The model with that name; 404 for any other."""
    (card,) = (await models(service)).data
    if model_id != card.id:
        raise ApiError(
            404,
            "model_not_found",
            f"the model {short_name(model_id)!r} does not exist; this server has {card.id!r}",
        )
    return card


async def embeddings() -> None:
    """Respond with Azure's own error for embeddings."""
    raise ApiError(404, "not_found", "Modality not supported by the model")


for prefix in AZURE_PREFIXES:
    router.get(f"{prefix}/info")(info)
for prefix in OPENAI_PREFIXES:
    router.get(f"{prefix}/models")(models)
    router.get(f"{prefix}/models/{{model_id:path}}", responses=responses(404))(model)
router.get(f"{PROJECT}/models", dependencies=[Depends(project_name)])(models)
router.get("/models")(models)  # for OpenAI's clients whose base URL is the root
for path in NO_EMBEDDINGS:
    router.post(path, include_in_schema=False)(embeddings)
