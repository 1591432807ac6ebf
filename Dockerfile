# The engine with its models and configs, for one kind of device:
#
#   docker build --build-arg VARIANT=cuda --tag REGISTRY/convoy:1.0-cuda .
#
# VARIANT is cpu, cuda or tpu. The packages of tools/image/VARIANT.lock are checked by hash. They include CUDA, so a
# host needs only NVIDIA's driver and container toolkit. --build-arg BASE=python@sha256:... pins the base image too. The
# user is not root. convoy is process 1, so it receives SIGTERM itself. A run writes to /convoy/runs and /tmp, so the
# root file system may be read-only.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ARG VARIANT=cpu
WORKDIR /build
COPY tools/image/${VARIANT}.lock packages.lock
RUN python -m venv /opt/convoy \
    && /opt/convoy/bin/pip install --no-cache-dir --require-hashes --requirement packages.lock
COPY pyproject.toml README.md ./
COPY engine engine
COPY convoy_zoo convoy_zoo
COPY models models
COPY configs configs
RUN /opt/convoy/bin/pip install --no-cache-dir --no-deps .

FROM ${BASE}
COPY --from=build /opt/convoy /opt/convoy
RUN useradd --uid 1000 --create-home convoy \
    && install --directory --owner=convoy /convoy/runs
ENV PATH=/opt/convoy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /convoy
USER 1000:1000
ENTRYPOINT ["convoy"]
CMD ["--help"]
