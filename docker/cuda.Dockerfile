# As cpu.Dockerfile, and CUDA's compiler: builds candidates for GPUs that are behind an RPC tracker (docs/devices.md).
# The TVM on PyPI has no CUDA runtime: this image runs nothing on a GPU itself, and needs none.
# From the root of a checkout:  docker build -f docker/cuda.Dockerfile -t lorien-cuda .
FROM nvidia/cuda:12.6.3-base-ubuntu24.04 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "python3-venv=3.12.*" \
    && rm -rf /var/lib/apt/lists/*
COPY setup.cfg pyproject.toml README.md LICENSE docker/constraints.txt /src/
COPY lorien /src/lorien
COPY featurize /src/featurize
COPY models /src/models
RUN python3 -m venv /opt/lorien \
    && /opt/lorien/bin/pip install --no-cache-dir --disable-pip-version-check -c /src/constraints.txt "/src[all]" \
    && /opt/lorien/bin/lorien --version

FROM nvidia/cuda:12.6.3-base-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        "cuda-cudart-dev-12-6=12.6.*" "cuda-nvcc-12-6=12.6.*" \
        "g++=4:13.*" "libgomp1=14.*" "python3=3.12.*" "tini=0.19.*" \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 lorien
COPY --from=build /opt/lorien /opt/lorien
ENV PATH=/opt/lorien/bin:/usr/local/cuda-12.6/bin:$PATH
USER 1000
WORKDIR /home/lorien
ENTRYPOINT ["tini", "--"]
CMD ["lorien", "--help"]
