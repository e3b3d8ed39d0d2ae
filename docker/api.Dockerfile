# The HTTP face. No torch in here: the image stays small and starts in a second.
FROM python:3.11-slim-bookworm AS wheel
ARG PIP_ARGS=""
WORKDIR /src
# one wheel, the same for all three images: .dockerignore lets in nothing but what it is made of
COPY . .
RUN pip wheel --disable-pip-version-check $PIP_ARGS --no-deps --wheel-dir /wheel .

FROM python:3.11-slim-bookworm AS build
# more arguments for pip, such as an index of your own: --build-arg PIP_ARGS="--index-url ..."
ARG PIP_ARGS=""
COPY constraints.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python -m venv /opt/sagan \
    && /opt/sagan/bin/pip install --disable-pip-version-check $PIP_ARGS -c /opt/constraints.txt \
    "$(echo /wheel/*.whl)[api,trace]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/sagan /opt/sagan
ENV PATH=/opt/sagan/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# a volume that is mounted here is theirs: SAGAN_RESULT_STORE=file:///srv/results
RUN install -d -m 700 -o 10001 -g 10001 /srv/results
USER 10001:10001
EXPOSE 8000
CMD ["sagan", "api", "--host", "0.0.0.0", "--port", "8000"]
