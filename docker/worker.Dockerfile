# The side that holds the model, on a CPU or a GPU: PyPI's torch does both.
FROM python:3.11-slim-bookworm AS wheel
ARG PIP_ARGS=""
WORKDIR /src
# one wheel, the same for all three images: .dockerignore lets in nothing but what it is made of
COPY . .
RUN pip wheel --disable-pip-version-check $PIP_ARGS --no-deps --wheel-dir /wheel .

FROM python:3.11-slim-bookworm
# more arguments for pip: with an index of CPU wheels the image is a fraction of the size
ARG PIP_ARGS=""
COPY constraints.txt /opt/
# a layer of its own, the same here and in train.Dockerfile: gigabytes, built and stored once
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sagan \
    && /opt/sagan/bin/pip install --disable-pip-version-check $PIP_ARGS -c /opt/constraints.txt torch
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /opt/sagan/bin/pip install --disable-pip-version-check $PIP_ARGS -c /opt/constraints.txt \
    "$(echo /wheel/*.whl)[worker,trace]"
# HOME: libraries keep caches there; USER: they ask for a name, and the number below has none
ENV PATH=/opt/sagan/bin:$PATH HOME=/tmp USER=sagan PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# threads that wait sleep: spinning, two of them on a core that something else uses took 2.6 times as long as one
ENV OMP_WAIT_POLICY=PASSIVE
WORKDIR /srv
# a volume that is mounted here is theirs: SAGAN_RESULT_STORE=file:///srv/results
RUN install -d -m 700 -o 10001 -g 10001 /srv/results
USER 10001:10001
CMD ["sagan", "worker"]
