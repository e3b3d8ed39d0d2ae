# The HTTP face. No torch in here: the image stays small and starts in a second.
FROM python:3.11-slim-bookworm AS build
# more arguments for pip, such as an index of your own: --build-arg PIP_ARGS="--index-url ..."
ARG PIP_ARGS=""
RUN python -m venv /opt/sagan
WORKDIR /src
COPY constraints.txt pyproject.toml README.md cli.py ./
COPY app app
COPY bench bench
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/sagan/bin/pip install --disable-pip-version-check $PIP_ARGS -c constraints.txt '.[api]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/sagan /opt/sagan
ENV PATH=/opt/sagan/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
CMD ["sagan", "api", "--host", "0.0.0.0", "--port", "8000"]
