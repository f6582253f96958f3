# Minetorch and its examples, without build tools, run by a user without rights.
#
#   docker build -t minetorch .
#   docker build -t minetorch:cuda \
#       --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm --init -v "$PWD:/work" --shm-size 1g minetorch minetorch-launch --nproc 2 train.py

ARG BASE=debian:12-slim

# hadolint ignore=DL3006
FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/minetorch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY constraints ./constraints
# Each build of torch requires its own versions of CUDA.
RUN version=$(/opt/minetorch/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
    && sed -E '/^(triton==|cuda-|nvidia-)/d' "constraints/${version}.txt" > /tmp/constraints.txt \
    && /opt/minetorch/bin/pip install --no-cache-dir --upgrade --constraint /tmp/constraints.txt pip
# First, and from its own index: this layer is by far the largest, and stays as it is while Minetorch changes.
RUN /opt/minetorch/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" \
        "$(grep '^torch==' /tmp/constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY minetorch ./minetorch
COPY launch ./launch
# With pins for torch's own requirements: pip replaces what came from torch's index in another version.
RUN /opt/minetorch/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt \
        --build-constraint /tmp/constraints.txt ".[s3,safetensors,examples]"

FROM python
COPY --from=build /opt/minetorch /opt/minetorch
COPY examples /examples
RUN useradd --create-home --uid 10001 miner && mkdir /work && chown miner:miner /work
ENV PATH=/opt/minetorch/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
CMD ["minetorch-launch", "--help"]
