# Both bases have the same Python (3.13); otherwise the byte code would not be used. They are named by
# tag, not by digest, so that this file builds for every architecture and on local bases, and a rebuild
# gets their security updates. Deployments pin the digest of the result.
ARG BUILD_BASE=docker.io/library/python:3.13-slim-trixie
ARG RUN_BASE=gcr.io/distroless/python3-debian13:nonroot

# hadolint ignore=DL3006
FROM ${BUILD_BASE} AS build

WORKDIR /src
RUN ["python3", "-m", "venv", "/build"]

# The libraries first: they change less often than ghealth. Type stubs, sources of compiled modules,
# tests and the scripts that libraries bring are not used at run time. The *.dist-info stay: scanners
# read an image's packages, versions and licences there.
COPY requirements/build.txt requirements/image.txt requirements/
RUN /build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --only-binary=:all: --no-compile -r requirements/build.txt \
    && /build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --only-binary=:all: --no-compile --target /opt/ghealth -r requirements/image.txt \
    && rm -rf /opt/ghealth/bin \
    && find /opt/ghealth -regex '.*\.\(pyi\|pxd\|pyx\|c\|h\|proto\)' -delete \
    && find /opt/ghealth -type d -name tests -prune -exec rm -r {} +

COPY pyproject.toml README.md LICENSE ./
COPY tools/pypi_readme.py tools/
COPY src/ src/
# The launcher ignores PYTHONPATH and other PYTHON… variables (-I), which injectors of agents replace,
# and writes nothing (-B), since the file system is read-only.
RUN /build/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --no-build-isolation --no-compile --target /opt/ghealth . \
    && printf '%s\n' '#!/usr/bin/python3 -IB' 'import sys' '' 'sys.path.insert(0, "/opt/ghealth")' \
        '' 'from ghealth.cli import main' '' 'sys.exit(main())' > /opt/ghealth/bin/ghealth \
    && /build/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/ghealth

# hadolint ignore=DL3006
FROM ${RUN_BASE}

COPY --from=build /opt/ghealth /opt/ghealth
ENV PATH=/opt/ghealth/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# By number, so that Kubernetes can check runAsNonRoot; distroless calls it nonroot.
USER 65532:65532
WORKDIR /
EXPOSE 25021

# Checks only the process: restarting ghealth does not help a gateway that is down. Kubernetes ignores
# HEALTHCHECK.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["ghealth", "check", "--service", "liveness"]
ENTRYPOINT ["ghealth"]

# Last, so that a new revision alone changes no layer above.
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="ghealth" \
      org.opencontainers.image.description="gRPC health checks for an Istio gateway behind an AWS ALB" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
