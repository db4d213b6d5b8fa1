# One broker in a pod, which is its own controller: its address for clients is $KAFKA_SERVICE_HOST, the data under /data.
set -eu
cat >/tmp/server.properties <<P
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://$KAFKA_SERVICE_HOST:9092
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:9093
log.dirs=/data/log
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
P
run() { java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx256m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp '/opt/kafka/*' "$@"; }
[ -e /data/log/meta.properties ] || run kafka.tools.StorageTool format --cluster-id 5L6g3nShT-eMCtK--X86sw --config /tmp/server.properties
run kafka.Kafka /tmp/server.properties &
broker=$!
trap 'kill "$broker"' INT TERM
# A trap ends the first wait.
wait "$broker" || wait "$broker"
