import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Reads Assay as Java programs and the tools built on them do: with PostgreSQL's JDBC driver.
 *
 * <p>Usage: {@code java -cp postgresql.jar Jdbc.java URL USER PASSWORD}, where the URL says how to encrypt,
 * such as {@code jdbc:postgresql://127.0.0.1:5433/assay?sslmode=verify-full&sslrootcert=ca.pem}.
 *
 * <p>Guards what this driver does that others do not: it asks the system's catalogs for tables and columns,
 * prepares a statement on the server once it has run five times and then asks for binary values, fetches in
 * parts through portals, and cancels over a second connection.
 *
 * <p>Every check runs, whatever others find. Prints a line for each, and exits with 1 if any failed. Expects
 * some rows in gold, and a source that has been read to its end.
 */
public class Jdbc {
    private static final Set<String> RELATIONS =
            Set.of("accuracy", "bronze", "gold", "mention_sentiment", "rejects", "scores", "silver", "users");

    /** So long that it ends only because it is made to, and yields no row before. */
    private static final String ENDLESS = "select count(*) from generate_series(1, 1000000000)";

    /** A statement must have ended so long after it was told to. */
    private static final Duration PATIENCE = Duration.ofSeconds(5);

    private final String url;
    private final Properties properties = new Properties();

    private Jdbc(String url, String user, String password) {
        this.url = url;
        properties.setProperty("user", user);
        properties.setProperty("password", password);
    }

    interface Check {
        void run() throws Exception;
    }

    interface Act {
        void run() throws SQLException;
    }

    public static void main(String[] arguments) {
        Jdbc jdbc = new Jdbc(arguments[0], arguments[1], arguments[2]);
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("only who has a password gets in", jdbc::onlyWhoHasAPasswordGetsIn);
        checks.put("tables and columns are listed", jdbc::tablesAndColumnsAreListed);
        checks.put("values keep their types", jdbc::valuesKeepTheirTypes);
        checks.put("parameters find their rows, however often", jdbc::parametersFindTheirRows);
        checks.put("rows come in parts, each once", jdbc::rowsComeInParts);
        checks.put("refusals have their codes", jdbc::refusalsHaveTheirCodes);
        checks.put("a connection is read-only", jdbc::aConnectionIsReadOnly);
        checks.put("a failed block is rolled back", jdbc::aFailedBlockIsRolledBack);
        checks.put("a statement ends at its timeout", jdbc::aStatementEndsAtItsTimeout);
        checks.put("a statement can be cancelled", jdbc::aStatementCanBeCancelled);
        int failed = 0;
        for (Map.Entry<String, Check> check : checks.entrySet()) {
            long began = System.nanoTime();
            try {
                check.getValue().run();
                System.out.printf("ok %s (%.1f s)%n", check.getKey(), (System.nanoTime() - began) / 1e9);
            } catch (Exception | AssertionError error) {
                failed += 1;
                System.out.printf("FAILED %s (line %d): %s%n", check.getKey(), lineOf(error), error);
            }
        }
        if (failed > 0) {
            System.err.printf("%d of %d checks failed%n", failed, checks.size());
            System.exit(1);
        }
        System.out.printf("ok: %d checks%n", checks.size());
    }

    // ---- the checks ------------------------------------------------------------------------

    private void onlyWhoHasAPasswordGetsIn() throws SQLException {
        try (Connection connection = connect()) {
            require(connection.isValid(5), "the connection says of itself that it is not valid");
        }
        Properties wrong = new Properties();
        wrong.setProperty("user", properties.getProperty("user"));
        wrong.setProperty("password", "not this one");
        refused("28P01", () -> DriverManager.getConnection(url, wrong).close());
    }

    private void tablesAndColumnsAreListed() throws SQLException {
        try (Connection connection = connect()) {
            Set<String> tables = new TreeSet<>();
            try (ResultSet found = connection.getMetaData().getTables(null, "public", "%", new String[] {"TABLE"})) {
                while (found.next()) {
                    tables.add(found.getString("TABLE_NAME"));
                }
            }
            same(new TreeSet<>(RELATIONS), tables);
            Map<String, Integer> columns = new LinkedHashMap<>();
            try (ResultSet found = connection.getMetaData().getColumns(null, "public", "gold", "%")) {
                while (found.next()) {
                    columns.put(found.getString("COLUMN_NAME"), found.getInt("DATA_TYPE"));
                }
            }
            same(Types.VARCHAR, columns.get("mention"));
            same(Types.TIMESTAMP, columns.get("timestamp"));
            same(Types.DOUBLE, columns.get("predicted_score"));
            same(Types.BIGINT, columns.get("sentiment_id"));
            try (Statement statement = connection.createStatement();
                    ResultSet rows = statement.executeQuery("select * from gold limit 0")) {
                List<String> described = new ArrayList<>();
                for (int at = 1; at <= rows.getMetaData().getColumnCount(); at++) {
                    described.add(rows.getMetaData().getColumnName(at));
                }
                same(described, new ArrayList<>(columns.keySet()));
            }
        }
    }

    private void valuesKeepTheirTypes() throws SQLException {
        try (Connection connection = connect();
                Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery(
                        "select \"timestamp\", mention, predicted_score, sentiment_id, null::text as nothing"
                                + " from gold where \"timestamp\" is not null limit 1")) {
            require(rows.next(), "gold has no dated rows, so most checks say nothing");
            require(rows.getObject(1) instanceof Timestamp, "a time is a " + rows.getObject(1).getClass());
            require(rows.getObject(2) instanceof String, "a name is a " + rows.getObject(2).getClass());
            require(rows.getObject(3) instanceof Double, "a score is a " + rows.getObject(3).getClass());
            require(rows.getObject(4) instanceof Long, "a label's number is a " + rows.getObject(4).getClass());
            require(rows.getString(5) == null && rows.wasNull(), "nothing is something");
        }
    }

    /** More often than five times, so that the later ones go by a statement that the server has prepared. */
    private void parametersFindTheirRows() throws SQLException {
        try (Connection connection = connect()) {
            String mention;
            Timestamp time;
            long sentiment;
            try (Statement statement = connection.createStatement();
                    ResultSet rows = statement.executeQuery("select mention, \"timestamp\", sentiment_id from gold"
                            + " where \"timestamp\" is not null order by key, mention limit 1")) {
                require(rows.next(), "gold has no dated rows, so most checks say nothing");
                mention = rows.getString(1);
                time = rows.getTimestamp(2);
                sentiment = rows.getLong(3);
            }
            String quoted = mention.replace("'", "''");
            long byName = count(connection, "select count(*) from gold where mention = '" + quoted + "'");
            long byLabel = count(connection, "select count(*) from gold where sentiment_id = " + sentiment);
            String literal = time.toInstant().toString();
            long byTime = count(connection, "select count(*) from gold where \"timestamp\" <= '" + literal + "'");
            try (PreparedStatement names = connection.prepareStatement("select count(*) from gold where mention = ?");
                    PreparedStatement labels =
                            connection.prepareStatement("select count(*) from gold where sentiment_id = ?");
                    PreparedStatement times =
                            connection.prepareStatement("select count(*) from gold where \"timestamp\" <= ?")) {
                for (int round = 1; round <= 12; round++) {
                    names.setString(1, mention);
                    same(byName, number(names));
                    names.setString(1, null);
                    same(0L, number(names));
                    labels.setLong(1, sentiment);
                    same(byLabel, number(labels));
                    times.setTimestamp(1, time);
                    same(byTime, number(times));
                }
            }
        }
    }

    private void rowsComeInParts() throws SQLException {
        try (Connection connection = connect()) {
            connection.setAutoCommit(false);
            long expected = count(connection, "select count(*) from gold");
            try (Statement statement = connection.createStatement()) {
                statement.setFetchSize(100);
                try (ResultSet rows = statement.executeQuery("select key, mention, assay_epoch() from gold")) {
                    Set<Long> epochs = new TreeSet<>();
                    long found = 0;
                    while (rows.next()) {
                        found += 1;
                        epochs.add(rows.getLong(3));
                        if (found % 250 == 0) {
                            // What is asked in between, of later epochs, must not show in the other rows.
                            count(connection, "select count(*) from silver");
                        }
                    }
                    same(expected, found);
                    same(1, epochs.size());
                }
            }
            connection.commit();
        }
    }

    private void refusalsHaveTheirCodes() throws SQLException {
        Map<String, String> codes = new LinkedHashMap<>();
        codes.put("drop table gold", "25006");
        codes.put("insert into gold select * from gold", "25006");
        codes.put("update gold set mention = 'x'", "25006");
        codes.put("delete from gold", "25006");
        codes.put("create table more (a int)", "25006");
        codes.put("select * into more from gold", "25006");
        codes.put("set datafusion.execution.batch_size = 1", "42501");
        codes.put("select * from nowhere", "42P01");
        codes.put("select nothing from gold", "42703");
        codes.put("selec 1", "42601");
        List<String> wrong = new ArrayList<>();
        try (Connection connection = connect();
                Statement statement = connection.createStatement()) {
            for (Map.Entry<String, String> code : codes.entrySet()) {
                try {
                    refused(code.getValue(), () -> statement.execute(code.getKey()));
                } catch (AssertionError error) {
                    wrong.add(code.getKey() + ": " + error.getMessage());
                }
                same(1L, count(connection, "select 1"));
            }
        }
        require(wrong.isEmpty(), String.join("; ", wrong));
    }

    private void aConnectionIsReadOnly() throws SQLException {
        try (Connection connection = connect()) {
            connection.setReadOnly(true);
            connection.setAutoCommit(false);
            require(count(connection, "select count(*) from gold") > 0, "gold has no rows");
            connection.commit();
            // Whoever says the contrary is still refused.
            connection.setReadOnly(false);
            connection.setAutoCommit(true);
            try (Statement statement = connection.createStatement()) {
                refused("25006", () -> statement.executeUpdate("delete from gold"));
            }
        }
    }

    private void aFailedBlockIsRolledBack() throws SQLException {
        try (Connection connection = connect();
                Statement statement = connection.createStatement()) {
            connection.setAutoCommit(false);
            refused("42703", () -> statement.execute("select nothing from gold"));
            refused("25P02", () -> statement.execute("select 1"));
            connection.rollback();
            same(1L, count(connection, "select 1"));
            connection.commit();
        }
    }

    private void aStatementEndsAtItsTimeout() throws SQLException {
        try (Connection connection = connect();
                Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            endsSoon(Duration.ofSeconds(1), () -> statement.execute(ENDLESS));
            same(1L, count(connection, "select 1"));
        }
    }

    private void aStatementCanBeCancelled() throws Exception {
        try (Connection connection = connect();
                Statement statement = connection.createStatement()) {
            CountDownLatch ended = new CountDownLatch(1);
            // Again and again: what has not begun yet cannot be cancelled.
            Thread canceller = new Thread(() -> {
                try {
                    while (!ended.await(200, TimeUnit.MILLISECONDS)) {
                        statement.cancel();
                    }
                } catch (InterruptedException | SQLException error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            try {
                endsSoon(Duration.ofMillis(200), () -> statement.execute(ENDLESS));
            } finally {
                ended.countDown();
                canceller.join();
            }
            same(1L, count(connection, "select 1"));
        }
    }

    // ---- what they need --------------------------------------------------------------------

    private Connection connect() throws SQLException {
        return DriverManager.getConnection(url, properties);
    }

    private static long count(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery(sql)) {
            require(rows.next(), "no row: " + sql);
            return rows.getLong(1);
        }
    }

    private static long number(PreparedStatement statement) throws SQLException {
        try (ResultSet rows = statement.executeQuery()) {
            require(rows.next(), "no row");
            return rows.getLong(1);
        }
    }

    private static void refused(String code, Act act) {
        try {
            act.run();
        } catch (SQLException error) {
            require(
                    code.equals(error.getSQLState()),
                    "refused with " + error.getSQLState() + ", expected " + code + ": " + error.getMessage());
            return;
        }
        throw new AssertionError("not refused, expected " + code);
    }

    private static void endsSoon(Duration after, Act act) {
        Instant began = Instant.now();
        refused("57014", act);
        Duration took = Duration.between(began, Instant.now());
        require(took.compareTo(after.plus(PATIENCE)) < 0, "ended after " + took);
    }

    private static void same(Object expected, Object found) {
        require(expected.equals(found), "found " + found + ", expected " + expected);
    }

    private static void require(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    /** The line of the check that failed: the lowest frame of this class that is none of those above. */
    private static int lineOf(Throwable error) {
        int line = 0;
        for (StackTraceElement frame : error.getStackTrace()) {
            if (frame.getClassName().equals("Jdbc") && !frame.getMethodName().equals("main")) {
                line = frame.getLineNumber();
            }
        }
        return line;
    }
}
