//! Tests of the whole platform. `tests/`: the API's crashes, the way from HTTP to Kafka, a real Kubernetes, and the examples.
