import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.regex.Pattern;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/** An event of an account. */
record Event(UUID id, String account, long version, long amount, String traceparent) {
    private static final Pattern TRACEPARENT =
            Pattern.compile("00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})");

    static Event of(ConsumerRecord<byte[], byte[]> record) throws Consumer.Poison {
        var headers = headers(record);
        try {
            var id = UUID.fromString(headers.getOrDefault("ce_id", ""));
            var payload = new ObjectMapper().readTree(record.value() == null ? new byte[0] : record.value());
            // Other types count as versions of the account, too: without them, gaps would be reported.
            var deposit = "account.deposited.v1".equals(headers.get("ce_type"));
            var amount = deposit ? number(payload, "amount") : 0;
            var account = payload.required("account_id").asText();
            return new Event(id, account, number(payload, "version"), amount, headers.getOrDefault("traceparent", ""));
        } catch (IllegalArgumentException | IOException malformed) {
            throw new Consumer.Poison(malformed.toString());
        }
    }

    private static long number(JsonNode payload, String member) {
        var number = payload.required(member);
        if (!number.isIntegralNumber() || !number.canConvertToLong() || number.longValue() < 0) {
            throw new IllegalArgumentException(member + " is not a positive number");
        }
        return number.longValue();
    }

    static Map<String, String> headers(ConsumerRecord<byte[], byte[]> record) {
        var headers = new HashMap<String, String>();
        for (var header : record.headers()) {
            var value = header.value() == null ? new byte[0] : header.value();
            headers.put(header.key(), new String(value, StandardCharsets.UTF_8).replace("\0", ""));
        }
        return headers;
    }

    /** A new span in the trace of a W3C traceparent, or in a new trace. OpenTelemetry's propagator does the same. */
    static String continued(String traceparent) {
        var valid = TRACEPARENT.matcher(traceparent);
        var random = UUID.randomUUID().toString().replace("-", "");
        var span = UUID.randomUUID().toString().replace("-", "").substring(16);
        return valid.matches() ? "00-" + valid.group(1) + "-" + span + "-" + valid.group(2) : "00-" + random + "-" + span + "-00";
    }
}
