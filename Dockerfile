# Phi-3-vision in a container. With a GPU, NVIDIA's driver and its container toolkit:
#   docker build --tag phi3v-server .
#   docker run --gpus all -p 8000:8000 phi3v-server
# Without a GPU (torch is then a build for CPUs):
#   docker build --build-arg VARIANT=cpu --tag phi3v-server:cpu .
#   docker run -p 8000:8000 phi3v-server:cpu
# Clients must send the key in /cache/api-key, which the first start makes, or PHI3V_API_KEY where
# that is set (-e PHI3V_API_KEY). A volume with a name (-v phi3v-cache:/cache) keeps the model.
FROM python:3.12-slim-bookworm AS build

# cuda or cpu. torch's wheels of the lock bring the CUDA libraries, so no base image has to.
ARG VARIANT=cuda
# Where torch's builds for CPUs are, which are not in the lock.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /build
COPY requirements.lock ./
# Of the cpu variant all packages but torch are installed by hash; torch is of the same version.
RUN python -m venv --without-pip /opt/venv \
    && case "$VARIANT" in \
        cuda) cp requirements.lock packages.lock ;; \
        cpu) awk '/^[a-z]/ { keep = !/^(torch==|triton==|cuda-|nvidia-)/ } keep' requirements.lock >packages.lock \
            && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary :all: \
                --index-url "$TORCH_INDEX" "$(grep --only-matching '^torch==[^ ]*' requirements.lock)" ;; \
        *) echo "VARIANT is cuda or cpu, not $VARIANT" >&2; exit 1 ;; \
    esac \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary :all: \
        --require-hashes --requirement packages.lock

FROM python:3.12-slim-bookworm

# The variants have the names of their devices: without its GPU the image for GPUs does not start.
ARG VARIANT=cuda

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    PHI3V_MODEL=microsoft/Phi-3-vision-128k-instruct \
    PHI3V_DEVICE=$VARIANT \
    PHI3V_HOST=0.0.0.0 \
    PHI3V_PORT=8000 \
    PHI3V_GENERATED_KEY_FILE=/cache/api-key

# Triton compiles the program that launches its kernels in C, once, at the first start with a GPU. Python's
# headers are part of the base image. A compiler's version does not matter, and Debian keeps one only.
# hadolint ignore=DL3008
RUN if [ "$VARIANT" = cuda ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi

RUN useradd --system --create-home --uid 10001 phi3v \
    && mkdir /cache \
    && chown phi3v /cache

WORKDIR /app
# The packages change more rarely than the code: a layer of their own.
COPY --from=build /opt/venv /opt/venv
COPY server server
COPY model model

USER 10001
VOLUME /cache
EXPOSE 8000
# Loading, with the first download, may take long; health is 503 until then. It sees variables
# and no flags: another port, and TLS, must be given as PHI3V_PORT and PHI3V_SSL_CERTFILE.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request; urllib.request.urlopen(f\"http{'s' * ('PHI3V_SSL_CERTFILE' in os.environ)}://127.0.0.1:{os.environ['PHI3V_PORT']}/health/ready\", timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["python", "-m", "server"]
