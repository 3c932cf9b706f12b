# pgbouncer for compose.yaml, as Debian packages it: docker build -f deploy/docker/pgbouncer.Dockerfile deploy/pgbouncer
FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends pgbouncer \
    && rm -rf /var/lib/apt/lists/*
COPY pgbouncer.ini /etc/pgbouncer/pgbouncer.ini
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --retries=4 CMD ["bash", "-c", ": </dev/tcp/127.0.0.1/6432"]
ENTRYPOINT ["pgbouncer", "/etc/pgbouncer/pgbouncer.ini"]
