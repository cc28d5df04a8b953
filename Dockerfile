# One image for all roles: docker build -t ota-hook . && docker run ota-hook --help
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libnghttp2-dev libxxhash-dev pkg-config && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.runtime.lock pyproject.toml setup.py README.md LICENSE ./
RUN python -m venv /opt/ota-hook && /opt/ota-hook/bin/pip install --no-cache-dir --require-hashes -r requirements.runtime.lock
COPY protos protos
COPY ota_hook ota_hook
COPY admin_api admin_api
RUN /opt/ota-hook/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libnghttp2-14 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --create-home --home-dir /var/lib/ota-hook ota-hook \
    && install -d -m 700 -o ota-hook -g ota-hook /var/lib/ota-hook/data
COPY --from=build /opt/ota-hook /opt/ota-hook
USER ota-hook
WORKDIR /var/lib/ota-hook
ENV PATH=/opt/ota-hook/bin:$PATH OTA_HOOK_DATA_DIR=/var/lib/ota-hook/data
ENTRYPOINT ["ota-hook"]
CMD ["--help"]
