# Both bases run the same Python (3.13), or the byte code made here is not used there. By name and
# not by digest, so that the same file builds for every architecture and on bases made locally; a
# rebuild takes the bases' security updates in. What you deploy is pinned by the digest of the result.
ARG BUILD_BASE=docker.io/library/python:3.13-slim-trixie
ARG RUN_BASE=gcr.io/distroless/python3-debian13:nonroot

# hadolint ignore=DL3006
FROM ${BUILD_BASE} AS build

WORKDIR /src
RUN ["python3", "-m", "venv", "/build"]

# The libraries first: they change less often than ghealth.
COPY requirements/build.txt requirements/image.txt requirements/
# The scripts that libraries bring (httpx) are of no use here.
RUN /build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --only-binary=:all: --no-compile -r requirements/build.txt \
    && /build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --only-binary=:all: --no-compile --target /opt/ghealth -r requirements/image.txt \
    && rm -rf /opt/ghealth/bin

COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
# pip writes this base's interpreter into the first line of a script, and the other base has none
# there. The byte code is taken as it is: the file system is read-only, and nothing changes in it.
RUN /build/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --no-build-isolation --no-compile --target /opt/ghealth . \
    && sed -i '1s|.*|#!/usr/bin/python3|' /opt/ghealth/bin/ghealth \
    && /build/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/ghealth

# hadolint ignore=DL3006
FROM ${RUN_BASE}

COPY --from=build /opt/ghealth /opt/ghealth
ENV PATH=/opt/ghealth/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/ghealth \
    PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes' runAsNonRoot can tell; distroless calls it nonroot.
USER 65532:65532
WORKDIR /
EXPOSE 25021

# The process alone: a gateway that is down is no reason to restart ghealth. Kubernetes ignores it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["ghealth", "check", "--service", "liveness"]
ENTRYPOINT ["ghealth"]

# Last, so that a new revision alone changes no layer above.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ghealth" \
      org.opencontainers.image.description="gRPC health checks for an Istio gateway behind an AWS ALB" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
