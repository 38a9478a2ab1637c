# The device: linux/arm64 (Raspberry Pi, Jetson) and linux/amd64, torch for the CPU. docs/images.md says how to build it.
#
#   docker build -f docker/device.Dockerfile -t emo-device .

ARG BASE=docker.io/library/debian:12-slim
# sha256:... of BASE, for a build that can be repeated
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS packages
SHELL ["/bin/sh", "-eu", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends binutils python3 python3-pip; \
    rm -rf /var/lib/apt/lists/*; \
    python3 -m venv --without-pip /opt/emo; \
    echo /opt/app > "$(echo /opt/emo/lib/python3*/site-packages)/app.pth"
WORKDIR /src
# cpu, or a version for a base with another JetPack
ARG TORCH=cpu
# where the CPU build for amd64 is; empty: only what pip is configured with
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt docker/packages.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 packages.py pins device "$TORCH"; \
    python3 -m pip --python /opt/emo/bin/python install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --no-compile -r requirements.txt -c pins.txt; \
    python3 packages.py finish /opt/emo --strip
# Bytecode of what is imported and of nothing else: a read-only root could not keep it, and all of it is 140 MB.
RUN /opt/emo/bin/python -c "import torch as t; net = t.nn.Linear(2, 2); net(t.ones(1, 2)).sum().backward(); \
t.optim.SGD(net.parameters(), 0.1).step(); import PIL.Image, cryptography.x509, paho.mqtt.client, pydantic, \
safetensors.numpy, yaml, zstandard"

FROM packages AS source
COPY README.md LICENSE ./
COPY emo emo
COPY device_app device_app
COPY testbed testbed
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt python3 -m pip --python /opt/emo/bin/python install --no-deps --target /opt/app .; \
    /opt/app/bin/emo selftest

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    groupadd --gid 10001 emo; \
    useradd --uid 10001 --gid 10001 --home-dir /var/lib/emo --no-create-home --shell /usr/sbin/nologin emo; \
    install -d -o 10001 -g 10001 /var/lib/emo; \
    install -d /etc/emo /data
# Two layers: an upgrade sends the second, of some MB, to every device.
COPY --from=packages /opt/emo /opt/emo
COPY --from=source /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/emo/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="emo-device" \
      org.opencontainers.image.description="EMO device: federated learning, and a tap for the edge's overlay" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
USER 10001:10001
WORKDIR /var/lib/emo
VOLUME ["/var/lib/emo"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["emo", "health", "--config", "/etc/emo/device.yaml"]
ENTRYPOINT ["emo"]
CMD ["device", "--config", "/etc/emo/device.yaml"]
