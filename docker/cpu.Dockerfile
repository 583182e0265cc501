# All of Lorien on a CPU, AWS included. From the root of a checkout:  docker build -f docker/cpu.Dockerfile -t lorien .
FROM python:3.11.13-slim-bookworm AS build
COPY setup.cfg pyproject.toml README.md LICENSE docker/constraints.txt /src/
COPY lorien /src/lorien
COPY featurize /src/featurize
COPY models /src/models
RUN python -m venv /opt/lorien \
    && /opt/lorien/bin/pip install --no-cache-dir --disable-pip-version-check -c /src/constraints.txt "/src[all]" \
    && /opt/lorien/bin/lorien --version

FROM python:3.11.13-slim-bookworm
# TVM links what it builds with a C++ compiler. LightGBM needs OpenMP. tini reaps the children that measure.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "g++=4:12.*" "libgomp1=12.*" "tini=0.19.*" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lorien
COPY --from=build /opt/lorien /opt/lorien
ENV PATH=/opt/lorien/bin:$PATH
USER 1000
WORKDIR /home/lorien
ENTRYPOINT ["tini", "--"]
CMD ["lorien", "--help"]
