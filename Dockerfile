# The images of the three programs, one target each:
#
#   docker build --target outbox-operator --tag outbox-operator:0.1.0 --build-arg COMMIT="$(git rev-parse HEAD)" .
#
# Each holds one program, the libraries it loads, and the public root CAs: no shell, no package manager. The root file
# system is never written to. Without Docker, as root on Debian: cargo xtask images.

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates libssl-dev pkg-config zlib1g-dev
WORKDIR /source
COPY . .
ARG COMMIT
RUN OUTBOX_COMMIT="$COMMIT" cargo build --release --locked --package basket-api --package outbox-relay --package outbox-operator \
 && for program in basket-api outbox-relay outbox-operator; do sh images/root.sh "target/release/$program" "/$program"; done

FROM scratch AS program
ARG COMMIT
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Outbox Platform" \
      org.opencontainers.image.revision="$COMMIT"
# For librdkafka, where no CA is configured. The Rust side brings its own.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532

FROM program AS basket-api
LABEL org.opencontainers.image.title="basket-api" \
      org.opencontainers.image.description="Basket service with a transactional outbox"
COPY --from=build /basket-api /
ENTRYPOINT ["/usr/bin/basket-api"]

FROM program AS outbox-relay
LABEL org.opencontainers.image.title="outbox-relay" \
      org.opencontainers.image.description="Carries committed outbox rows from PostgreSQL to Kafka"
COPY --from=build /outbox-relay /
ENTRYPOINT ["/usr/bin/outbox-relay"]

FROM program AS outbox-operator
LABEL org.opencontainers.image.title="outbox-operator" \
      org.opencontainers.image.description="Makes what OutboxRelay resources declare: publication, topics and relay"
COPY --from=build /outbox-operator /
ENTRYPOINT ["/usr/bin/outbox-operator"]
