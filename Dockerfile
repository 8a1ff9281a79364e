# The web page and the HTTP API on an NVIDIA GPU; docs/containers.md says how to run it. Dockerfile.cpu is the same
# without a GPU.
#
# "base" has the CUDA runtime and what lets a driver in; PyTorch's wheels bring the rest of CUDA themselves.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# Versions are those of the pinned release: exact ones would stop the build at the next security update.
# OpenCV's window part needs libgl1 and libglib2.0 even where no window is opened.
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

WORKDIR /app
COPY requirements.txt requirements-nodeps.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt \
    && pip install --no-cache-dir --no-deps --requirement requirements-nodeps.txt

# The code belongs to root: the service cannot change it.
COPY LICENSE gradio_app.py ./
COPY assets/ assets/
COPY configs/ configs/
COPY ECCV2022-RIFE/ ECCV2022-RIFE/
COPY latentsync/ latentsync/
COPY scripts/ scripts/
COPY tools/ tools/
COPY --chown=latentsync:latentsync checkpoints/embedded/ checkpoints/embedded/
RUN install --directory --owner=latentsync --group=latentsync /workspace checkpoints

USER 10001
VOLUME ["/app/checkpoints", "/workspace"]
EXPOSE 8000
# The page knows no /healthz and says so, which is an answer as well.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=8); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status >= 500)"]
# Reached from outside, so it refuses to start without LATENTSYNC_PAGE_USER and LATENTSYNC_PAGE_PASSWORD.
CMD ["python", "gradio_app.py", "--host", "0.0.0.0", "--port", "8000", "--workspace", "/workspace"]
