# syntax=docker/dockerfile:1
# Voicepod with its GPU profile. Models are not in the image: they belong on the volume. docs/runpod.md says how to use it.
#
#   docker build -t voicepod .                 a server that never is root (the last stage)
#   docker build -t voicepod-pod --target pod .   for pods whose volume belongs to root: starts as root, hands the
#                                                 volume's folders over, and leaves root before anything is served
#
# CUDA's libraries come with torch's wheels, so a slim Debian is base enough: docs/decisions/0011-a-slim-base.md.
# The digest is python:3.11.16-slim-bookworm.
ARG BASE=python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

# --- the wheels, every file by its hash
FROM ${BASE} AS wheels
WORKDIR /build
COPY requirements/build.lock requirements/gpu.lock requirements/
COPY deploy/install_wheels.sh deploy/
RUN deploy/install_wheels.sh requirements/gpu.lock /opt/venv python3.11

# --- programs and code
FROM ${BASE} AS app
# Debian's own archive is signed; a version pinned here would be gone with Debian's next point release.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates espeak-ng ffmpeg tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 voicepod \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /workspace/cache --shell /usr/sbin/nologin voicepod \
    && install -d -o 10001 -g 10001 -m 0755 /workspace
COPY --from=wheels /opt/venv /opt/venv
WORKDIR /app
COPY app.py logs.py process_tuning.py private_files.py settings.py settings_guide.py settings_keys.py settings_sources.py ./
COPY api api
COPY benchmarks benchmarks
COPY configs configs
COPY deploy deploy
COPY firered firered
COPY pipeline pipeline
COPY scripts scripts
COPY tests/fixtures/speech tests/fixtures/speech
COPY ui ui
COPY container_startup.sh LICENSE NOTICE README.md ./
ENV VOICEPOD_VENV=/opt/venv \
    VOICEPOD_WORKSPACE=/workspace \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 7860
# The first start downloads some 20 GB before the server listens.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60m --retries=3 \
    CMD ["/opt/venv/bin/python", "-m", "scripts.alive"]
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "/app/container_startup.sh"]

# --- for volumes that belong to root: container_startup.sh leaves root before it does anything else
FROM app AS pod
# hadolint ignore=DL3002
USER 0:0
ENV VOICEPOD_RUN_AS=10001

# --- the default: never root
FROM app AS server
USER 10001:10001
