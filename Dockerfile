# The web UI and the REST API on an NVIDIA GPU, see docs/containers.md. Dockerfile.cpu is the same without a GPU.
#
# "base" holds the CUDA runtime and the hooks for the driver; the locked packages bring the other CUDA libraries.
# Give nvidia/cuda@sha256:... to build on an image that you have checked; see docs/containers.md.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE_IMAGE}

# apt versions are those of the pinned release: exact ones would break the build at the next security update.
# OpenCV needs libgl1 and libglib2.0 even where no window is opened.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv libgl1 libglib2.0-0t64 \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv \
    && useradd --no-log-init --create-home --uid 10001 latentsync

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# Locked packages, each verified by its hash. --no-deps: nothing that is not in the lock files.
WORKDIR /locks
COPY requirements.txt requirements-cuda.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes \
        --requirement requirements.txt --requirement requirements-cuda.txt \
    && python -c 'import torch'

# An ordinary installation: the image holds no second copy of the sources.
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir --no-deps --no-build-isolation /src \
    && install --directory --owner=latentsync --group=latentsync /checkpoints /workspace

# The code belongs to root: the service cannot change it. It writes to the volumes and to /tmp only.
ENV HF_HOME=/checkpoints/huggingface \
    LATENTSYNC_CHECKPOINTS=/checkpoints \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba
USER 10001
WORKDIR /workspace
VOLUME ["/checkpoints", "/workspace"]
EXPOSE 8000
# The web UI does not know /healthz and answers 404, which is an answer as well.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=8); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status >= 500)"]
# It is reached from outside and refuses to start without LATENTSYNC_PAGE_USER and LATENTSYNC_PAGE_PASSWORD.
CMD ["latentsync", "app", "--host", "0.0.0.0", "--port", "8000", "--workspace", "/workspace"]
