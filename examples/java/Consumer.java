import com.fasterxml.jackson.databind.ObjectMapper;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** Applies each event once: inbox row and effect in one transaction, the offset after it. Its supervisor restarts it. */
public final class Consumer {
    /** The record can never take effect. */
    static final class Poison extends Exception {
        Poison(String reason) {
            super(reason);
        }
    }

    static void process(Connection database, ConsumerRecord<byte[], byte[]> record) throws Exception {
        try {
            apply(database, Event.of(record));
            database.commit();
        } catch (Poison | SQLException error) {
            database.rollback();
            // SQLSTATE classes 22 and 23: values that a column or constraint refuses.
            if (error instanceof SQLException sql && (sql.getSQLState() == null || !sql.getSQLState().matches("2[23].*"))) {
                throw error;
            }
            update(database, """
                    INSERT INTO rejected (topic, partition, "offset", reason, headers, key, value)
                    VALUES (?, ?, ?, ?, ?::jsonb, ?, ?) ON CONFLICT DO NOTHING""",
                    record.topic(), record.partition(), record.offset(), error.getMessage().replace("\0", ""),
                    new ObjectMapper().writeValueAsString(Event.headers(record)), record.key(), record.value());
            database.commit();
        }
    }

    static void apply(Connection database, Event event) throws Poison, SQLException {
        var inbox = "INSERT INTO inbox (event_id, traceparent) VALUES (?, ?) ON CONFLICT DO NOTHING";
        if (update(database, inbox, event.id(), Event.continued(event.traceparent())) == 0) {
            return;
        }
        var effect = database.prepareStatement("SELECT apply_deposit(?, ?, ?)::text");
        effect.setString(1, event.account());
        effect.setLong(2, event.amount());
        effect.setLong(3, event.version());
        var row = effect.executeQuery();
        row.next();
        if (row.getString(1) == null) {
            throw new Poison("the version arrived before, with another event id");
        }
        System.out.println("applied " + event.id() + " missing versions: " + row.getString(1));
    }

    static int update(Connection database, String sql, Object... values) throws SQLException {
        try (var statement = database.prepareStatement(sql)) {
            for (int index = 0; index < values.length; index++) {
                statement.setObject(index + 1, values[index]);
            }
            return statement.executeUpdate();
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", System.getenv("KAFKA_BOOTSTRAP_SERVERS"), "group.id", System.getenv("KAFKA_GROUP"),
                "auto.offset.reset", "earliest", "enable.auto.commit", false, "session.timeout.ms", 10_000);
        var stopping = new CountDownLatch(1);
        var main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping.countDown();
            try {
                main.join();
            } catch (InterruptedException ignored) {
                // The process ends now.
            }
        }));
        try (var database = DriverManager.getConnection(System.getenv("JDBC_URL"));
                var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            database.setAutoCommit(false);
            consumer.subscribe(List.of(System.getenv("KAFKA_TOPIC")));
            while (stopping.getCount() > 0) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    process(database, record);
                }
                consumer.commitSync();
            }
        }
    }
}
