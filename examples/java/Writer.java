import com.fasterxml.jackson.databind.ObjectMapper;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.UUID;

/**
 * Deposits an amount: state and event in one transaction.
 *
 * <pre>JDBC_URL=jdbc:postgresql://... TRACEPARENT=00-... java Writer ann 500</pre>
 */
public final class Writer {
    record DepositedV1(String account_id, long version, long amount) {}

    static void deposit(Connection database, String account, long amount, String traceparent) throws Exception {
        database.setAutoCommit(false);
        try {
            // The state first: this statement locks the row, so events of one account are committed in the order of their versions.
            var event = new DepositedV1(account, addToBalance(database, account, amount), amount);
            var append = database.prepareStatement("""
                    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent)
                    VALUES (?, 'account', ?, 'account.deposited.v1', ?::jsonb, ?)""");
            append.setObject(1, UUID.randomUUID()); // Better a UUIDv7, from a library.
            append.setString(2, account);
            append.setString(3, new ObjectMapper().writeValueAsString(event));
            append.setString(4, traceparent);
            append.executeUpdate();
            database.commit();
        } catch (Exception error) {
            database.rollback();
            throw error;
        }
    }

    private static long addToBalance(Connection database, String account, long amount) throws SQLException {
        var statement = database.prepareStatement("""
                INSERT INTO account AS a (account_id, balance, version) VALUES (?, ?, 1)
                ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1
                RETURNING version""");
        statement.setString(1, account);
        statement.setLong(2, amount);
        var row = statement.executeQuery();
        row.next();
        return row.getLong("version");
    }

    public static void main(String[] arguments) throws Exception {
        try (var database = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            deposit(database, arguments[0], Long.parseLong(arguments[1]), System.getenv("TRACEPARENT"));
        }
    }
}
