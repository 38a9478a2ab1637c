# The cloud, two images: the coordinator (rounds, ensemble, export) and the endpoint, which has no torch and is `emo watch` too: an
# image of its own would be 127 MB of packages on the same host, in this one they are 16 more.
# docs/images.md says how to build and run them.
#
#   docker build -f docker/cloud.Dockerfile --target coordinator -t emo-coordinator .
#   docker build -f docker/cloud.Dockerfile --target endpoint -t emo-endpoint .

ARG BASE=docker.io/library/debian:12-slim
# sha256:... of BASE, for a build that can be repeated
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS tools
SHELL ["/bin/sh", "-eu", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip; \
    rm -rf /var/lib/apt/lists/*; \
    python3 -m venv --without-pip /opt/emo; \
    echo /opt/app > "$(echo /opt/emo/lib/python3*/site-packages)/app.pth"
WORKDIR /src
COPY pyproject.toml constraints.txt docker/packages.py ./

FROM tools AS coordinator-packages
# cpu, cuda, or a version
ARG TORCH=cpu
# where the CPU build is; empty: only what pip is configured with
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 packages.py pins cloud "$TORCH"; \
    python3 -m pip --python /opt/emo/bin/python install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -r requirements.txt -c pins.txt; \
    python3 packages.py finish /opt/emo

FROM tools AS endpoint-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 packages.py pins serve,watch cpu; \
    python3 -m pip --python /opt/emo/bin/python install -r requirements.txt -c pins.txt; \
    python3 packages.py finish /opt/emo

FROM tools AS source
COPY README.md LICENSE ./
COPY emo emo
COPY cloud_app cloud_app
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt python3 -m pip --python /opt/emo/bin/python install --no-deps --target /opt/app .

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS run
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    groupadd --gid 10001 emo; \
    useradd --uid 10001 --gid 10001 --home-dir /var/lib/emo --no-create-home --shell /usr/sbin/nologin emo; \
    install -d -o 10001 -g 10001 /var/lib/emo /var/lib/emo/models /var/lib/emo/watch; \
    install -d /etc/emo /data
ENV PATH=/opt/app/bin:/opt/emo/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/emo

FROM run AS coordinator
# Two layers: an upgrade sends the second, of some MB.
COPY --from=coordinator-packages /opt/emo /opt/emo
COPY --from=source /opt/app /opt/app
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="emo-coordinator" \
      org.opencontainers.image.description="EMO cloud: federated rounds, the ensemble, its export" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
VOLUME ["/var/lib/emo"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["emo", "health", "--config", "/etc/emo/cloud.yaml"]
ENTRYPOINT ["emo"]
CMD ["cloud", "--config", "/etc/emo/cloud.yaml"]

FROM run AS endpoint
COPY --from=endpoint-packages /opt/emo /opt/emo
COPY --from=source /opt/app /opt/app
# With TLS: https://NAME:8000/v2/health/ready, and SSL_CERT_FILE if its CA is your own.
ENV HEALTH_URL=http://127.0.0.1:8000/v2/health/ready
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="emo-endpoint" \
      org.opencontainers.image.description="EMO endpoint: serves a model repository over the Open Inference Protocol v2; emo watch" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
EXPOSE 8000 8080
VOLUME ["/var/lib/emo/models"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=4).read()"]
ENTRYPOINT ["emo"]
CMD ["serve", "--models", "/var/lib/emo/models", "--host", "0.0.0.0", "--port", "8000"]
