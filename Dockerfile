# One image for every part of tandem but Redis. TORCH=cpu|cuda chooses the build of PyTorch.
# Wheels that no index has, if any, lie in wheels/ beside this file.
FROM python:3.11-slim-bookworm AS build
ARG TORCH=cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python3 -m venv /opt/tandem
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/build/wheels
WORKDIR /build
COPY constraints.txt wheel[s]/* wheels/
# The CPU build has a local version label; where the configured indexes lack it, uv knows where it is kept.
RUN torch=$(grep -m1 '^torch==' wheels/constraints.txt); \
    case "$TORCH" in \
      cpu) /opt/tandem/bin/pip install --quiet --constraint wheels/constraints.txt "$torch+cpu" \
        || { /opt/tandem/bin/pip install --quiet uv \
             && /opt/tandem/bin/uv pip install --quiet --python /opt/tandem/bin/python \
                  --torch-backend=cpu "$torch"; } ;; \
      cuda) /opt/tandem/bin/pip install --quiet --constraint wheels/constraints.txt "$torch" ;; \
      *) echo "TORCH=$TORCH is not one of cpu, cuda." >&2; exit 2 ;; \
    esac
# Dependencies before the source, so that a change of the source does not install them again.
COPY pyproject.toml ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['postgresql']))" > requirements.txt \
    && /opt/tandem/bin/pip install --quiet --constraint wheels/constraints.txt --requirement requirements.txt
COPY . ./
RUN /opt/tandem/bin/pip install --quiet --no-deps . \
    && /opt/tandem/bin/pip uninstall --quiet --yes uv pip setuptools

FROM python:3.11-slim-bookworm
# Releases travel to another host by rsync over ssh. Debian's security archive moves on: pinned versions vanish from it.
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends openssh-client rsync \
    && apt-get purge -y -qq --auto-remove gcc g++ cpp python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tandem
COPY --from=build /opt/tandem /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp HF_HUB_OFFLINE=1
WORKDIR /opt/tandem
USER 10001
ENTRYPOINT ["tandem"]
CMD ["--help"]
