# Phi-3-vision on a GPU VM: PHI3V_API_KEY=... in the environment, then
#   docker run --gpus all -p 8000:8000 -v phi3v-cache:/cache -e PHI3V_API_KEY IMAGE
# It listens to other machines, and does not start without a key, a tenant or --insecure.
# torch's wheel brings the CUDA libraries, so the base needs none; the host needs NVIDIA's driver.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    PHI3V_MODEL=microsoft/Phi-3-vision-128k-instruct \
    PHI3V_HOST=0.0.0.0 \
    PHI3V_PORT=8000

WORKDIR /app

# The packages change more rarely than the code: a layer of their own.
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps --only-binary :all: --requirement requirements.lock \
    && useradd --system --create-home --uid 10001 phi3v \
    && mkdir /cache \
    && chown phi3v /cache

COPY server server
COPY model model

USER 10001
VOLUME /cache
EXPOSE 8000
# Loading, with the first download, may take long; health is 503 until then.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PHI3V_PORT']}/health/ready\", timeout=4)"]
ENTRYPOINT ["python", "-m", "server"]
