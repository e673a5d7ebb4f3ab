ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY requirements requirements
RUN python -m venv /opt/headgate \
    && /opt/headgate/bin/pip install --no-cache-dir --require-hashes --requirement requirements/image.txt \
    && pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY clients/python clients/python
COPY pyproject.toml README.md LICENSE ./
COPY server server
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./clients/python . \
    && /opt/headgate/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/headgate/bin/pip check

FROM python:${PYTHON}-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/headgate /opt/headgate

# Served until a file of yours is mounted over it: the mock alone, so that nobody's key is open to everybody.
# Whoever listens on 0.0.0.0 says so in the configuration, here and there.
COPY <<YAML /etc/headgate/headgate.yaml
server: {listen: "0.0.0.0:50051", reflection: true}
admin: {listen: "0.0.0.0:9464"}
auth: {anonymous: true}
providers:
  demo: {adapter: mock, models: [echo, lorem, tools, embed]}
models:
  echo: {targets: [{provider: demo, model: echo}]}
  lorem: {targets: [{provider: demo, model: lorem}]}
YAML

ENV PATH=/opt/headgate/bin:$PATH \
    HEADGATE_CONFIG=/etc/headgate/headgate.yaml \
    GRPC_VERBOSITY=ERROR \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 50051 9464
ENTRYPOINT ["headgate"]
CMD ["serve"]
