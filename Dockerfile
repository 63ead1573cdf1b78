# sealrun in a container, beside an engine whose socket is mounted. Runs are containers of that
# engine, next to this one, so it must be told what this container's paths are called on its host:
#
#   docker build -t sealrun .
#   docker run --rm -v /var/run/docker.sock:/var/run/docker.sock -v "$HOME/lab:/lab" \
#     -e SEALRUN_HOME=/lab/.sealrun -e SEALRUN_PATH_MAP="/lab:$HOME/lab" \
#     -w /lab/repository sealrun run -- python3 train.py
#
# Where the directory is mounted at its own path (-v "$HOME/lab:$HOME/lab") no mapping is needed.

# Any Debian with Python 3.11 or newer.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN command -v git && python3 -m venv --without-pip /tmp/try && python3 -m ensurepip --version \
    || { apt-get update && apt-get install -y --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }
# What to install: the checkout by default, or a wheel in the context.
ARG SOURCE=.
# Another index or a folder of wheels in the context (/source/…), as pip's variables say it.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
COPY . /source
RUN python3 -m venv /opt/sealrun \
    && /opt/sealrun/bin/pip install --no-cache-dir "/source/${SOURCE}" \
    && /opt/sealrun/bin/python -m compileall -q /opt/sealrun/lib

FROM ${BASE}
RUN command -v git && command -v mmdebstrap && command -v python3 \
    || { apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates debian-archive-keyring git mmdebstrap python3 && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /opt/sealrun /opt/sealrun
ENV PATH=/opt/sealrun/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Repositories are mounted from the host and belong to users that do not exist here.
RUN git config --system --add safe.directory '*'
ENTRYPOINT ["sealrun"]
CMD ["--help"]
