# The edge: torch with CUDA, or without it by TORCH=cpu. docs/images.md says how to build and run it.
#
#   docker build -f docker/edge.Dockerfile -t emo-edge .

ARG BASE=docker.io/library/debian:12-slim
# sha256:... of BASE, for a build that can be repeated
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS packages
SHELL ["/bin/sh", "-eu", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip; \
    rm -rf /var/lib/apt/lists/*; \
    python3 -m venv --without-pip /opt/emo; \
    echo /opt/app > "$(echo /opt/emo/lib/python3*/site-packages)/app.pth"
WORKDIR /src
# cuda (its libraries come as packages: the machine needs the driver only), cpu, or a version
ARG TORCH=cuda
# where the CPU build is; empty: only what pip is configured with
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt docker/packages.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 packages.py pins edge "$TORCH"; \
    python3 -m pip --python /opt/emo/bin/python install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -r requirements.txt -c pins.txt; \
    python3 packages.py finish /opt/emo

FROM packages AS source
COPY README.md LICENSE ./
COPY emo emo
COPY edge_app edge_app
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt python3 -m pip --python /opt/emo/bin/python install --no-deps --target /opt/app .; \
    /opt/emo/bin/python -c "import edge_app.run"

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    groupadd --gid 10001 emo; \
    useradd --uid 10001 --gid 10001 --home-dir /var/lib/emo --no-create-home --shell /usr/sbin/nologin emo; \
    install -d -o 10001 -g 10001 /var/lib/emo; \
    install -d /etc/emo
# Two layers: an upgrade sends the second, of some MB.
COPY --from=packages /opt/emo /opt/emo
COPY --from=source /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/emo/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="emo-edge" \
      org.opencontainers.image.description="EMO edge: keeps the activations of its devices, trains an overlay on them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
USER 10001:10001
WORKDIR /var/lib/emo
VOLUME ["/var/lib/emo"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["emo", "health", "--config", "/etc/emo/edge.yaml"]
ENTRYPOINT ["emo"]
CMD ["edge", "--config", "/etc/emo/edge.yaml"]
